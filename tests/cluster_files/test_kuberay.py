"""What the KubeRay files promise beyond being valid: restricted pods, who may talk to whom, what may be evicted, and
the weekly run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

KUBERAY = Path(__file__).resolve().parents[2] / "cluster" / "kuberay"
FILES = ["raycluster.yaml", "rayjob.yaml", "raycronjob.yaml", "rayservice.yaml"]
DEPRECATED = {"serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold", "replicas"}


def read(name: str) -> Any:
    return yaml.safe_load((KUBERAY / name).read_text())


def policies() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERAY / "policies.yaml").read_text()))


def pods(node: Any) -> list[dict[str, Any]]:
    """Every pod spec in a tree, the submitter's too."""
    if isinstance(node, list):
        return [pod for value in node for pod in pods(value)]
    if not isinstance(node, dict):
        return []
    own = [node] if isinstance(node.get("containers"), list) else []
    return own + [pod for value in node.values() for pod in pods(value)]


def keys(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(keys, node)) if node else set()
    if not isinstance(node, dict):
        return set()
    return set(node) | set().union(*map(keys, node.values()))


@pytest.mark.parametrize("name", FILES)
def test_every_pod_passes_the_restricted_standard(name: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, field by field."""
    document = read(name)
    found = pods(document)
    wanted = {"raycluster.yaml": 3, "rayjob.yaml": 4, "raycronjob.yaml": 4, "rayservice.yaml": 2}
    assert len(found) == wanted[name]
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert [container for container in pod["containers"] if not restricted(container)] == []
        assert all("hostPath" not in volume for volume in pod.get("volumes", []))
    spec = document["spec"].get("jobTemplate", document["spec"])
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    assert restricted(cluster["autoscalerOptions"])  # a container that KubeRay puts beside the head's


def restricted(container: dict[str, Any]) -> bool:
    context = container["securityContext"]
    return bool(
        context["allowPrivilegeEscalation"] is False
        and context["runAsNonRoot"] is True
        and context["capabilities"] == {"drop": ["ALL"]}
        and context["seccompProfile"] == {"type": "RuntimeDefault"}
    )


@pytest.mark.parametrize("name", FILES)
def test_no_field_is_named_that_kuberay_reads_no_more(name: str) -> None:
    assert keys(read(name)) & DEPRECATED == set()


@pytest.mark.parametrize("name", FILES)
def test_no_autoscaler_of_kubernetes_moves_the_head(name: str) -> None:
    spec = read(name)["spec"].get("jobTemplate", read(name)["spec"])
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    assert cluster["headGroupSpec"]["template"]["metadata"]["annotations"] == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }


@pytest.mark.parametrize("name", FILES)
def test_gpu_pods_go_where_gpu_nodes_keep_others_out_and_no_other_pod_does(name: str) -> None:
    for pod in pods(read(name)):
        asks = any("nvidia.com/gpu" in c["resources"]["limits"] for c in pod["containers"])
        tolerated = [one["key"] for one in pod.get("tolerations", [])]
        assert tolerated == (["nvidia.com/gpu"] if asks else [])


def test_a_served_application_outlives_its_head() -> None:
    cluster = read("rayservice.yaml")["spec"]["rayClusterConfig"]
    assert cluster["gcsFaultToleranceOptions"]["backend"] == "rocksdb"
    served = yaml.safe_load(read("rayservice.yaml")["spec"]["serveConfigV2"])["applications"][0]["args"]["resources"]
    [group] = cluster["workerGroupSpecs"]
    assert served["replicas"] == group["minReplicas"] >= 2


def test_the_weekly_job_is_the_job_but_for_its_sync() -> None:
    weekly, once = read("raycronjob.yaml")["spec"]["jobTemplate"], read("rayjob.yaml")["spec"]
    assert weekly.pop("entrypoint").replace(" --sync", "") == once.pop("entrypoint")
    assert weekly == once


def test_a_stopped_job_has_the_time_to_save_its_checkpoint() -> None:
    env = yaml.safe_load(read("rayjob.yaml")["spec"]["runtimeEnvYAML"])["env_vars"]
    assert int(env["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


def test_kubernetes_accepts_the_policies_strictly() -> None:
    for document in policies():
        kubernetes_validate.validate(document, "1.33", strict=True)
    broken = policies()[2]
    broken["spec"]["ingres"] = broken["spec"].pop("ingress")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.33", strict=True)


def test_the_policies_keep_others_out_and_the_head_where_it_is() -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    for document in policies():
        found.setdefault(document["kind"], []).append(document)
    [namespace] = found["Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for policy in found["NetworkPolicy"]:
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        assert all(rule["from"] for rule in policy["spec"]["ingress"])  # none that anybody may come through
    open_ports = {
        port["port"]
        for policy in found["NetworkPolicy"]
        for rule in policy["spec"]["ingress"]
        for port in rule.get("ports", [])
    }
    assert open_ports == {8000, 8080}
    budgets = {one["metadata"]["name"]: one["spec"] for one in found["PodDisruptionBudget"]}
    assert budgets["biomedclip-head"]["maxUnavailable"] == 0
    assert budgets["biomedclip-head"]["selector"]["matchLabels"] == {"ray.io/node-type": "head"}
