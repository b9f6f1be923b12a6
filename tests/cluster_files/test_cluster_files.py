"""The cluster files against the schemas of those who read them: Ray's launcher, KubeRay's CRDs, Serve. No cluster
needed.
"""

from __future__ import annotations

import copy
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import ray.autoscaler
import yaml
from pydantic import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from biomedclip_ray.config import load
from biomedclip_ray.serve.app import Arguments

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHER = ["aws.yaml", "gcp.yaml", "on_prem.yaml"]
KUBERAY = {
    "raycluster.yaml": "rayclusters",
    "rayjob.yaml": "rayjobs",
    "raycronjob.yaml": "raycronjobs",
    "rayservice.yaml": "rayservices",
}
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def strings(node: Any) -> list[str]:
    """Every string of a YAML tree, comments left out."""
    if isinstance(node, dict):
        return [text for value in node.values() for text in strings(value)]
    if isinstance(node, list):
        return [text for value in node for text in strings(value)]
    return [node] if isinstance(node, str) else []


def images(node: Any) -> list[str]:
    """Every value of a key `image`."""
    if isinstance(node, list):
        return [image for value in node for image in images(value)]
    if not isinstance(node, dict):
        return []
    own = [node["image"]] if "image" in node else []
    return own + [image for value in node.values() for image in images(value)]


def strict(schema: Any) -> Any:
    """An openAPIV3Schema as a JSON schema that refuses what the API server would prune: fields it does not know."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string") is True:
        return {"type": ["integer", "string"]}
    result = {key: strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if isinstance(schema.get("properties"), dict):
        result["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    return result


def ray_cluster(document: Any) -> Any:
    """The cluster that a KubeRay document describes, whatever its kind."""
    spec = document["spec"].get("jobTemplate", document["spec"])
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


@pytest.fixture(scope="module")
def crd_schemas() -> dict[str, Any]:
    """File name -> strict schema of its `ray.io/v1` kind."""
    data = Path(os.environ.get("BIOMEDCLIP_TEST_DATA", ROOT / "../shared")) / "kuberay"
    if not data.is_dir():
        pytest.skip(f"the KubeRay CRDs are not in {data} (BIOMEDCLIP_TEST_DATA names the folder that holds them)")
    found = {}
    for name, plural in KUBERAY.items():
        # the C loader reads a megabyte of CRD in a second, the Python one in ten
        crd = yaml.load((data / f"ray.io_{plural}.yaml").read_text(), Loader=yaml.CSafeLoader)
        version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}  # the API server's own, a CRD does not describe it
        found[name] = schema
    return found


def launcher_errors(config: Any) -> list[str]:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(config)]


def crd_errors(schema: Any, document: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(document)]


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launcher_accepts_the_file(name: str) -> None:
    assert launcher_errors(read(name)) == []


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launcher_refuses_a_misspelt_field(name: str) -> None:
    config = read(name)
    config["idle_timeout_minuets"] = config.pop("idle_timeout_minutes")
    assert any("idle_timeout_minuets" in message for message in launcher_errors(config))


@pytest.mark.parametrize("name", LAUNCHER)
def test_no_list_is_left_to_the_launchers_own_unpinned_defaults(name: str) -> None:
    needed = {"initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"}
    needed |= {"head_start_ray_commands", "worker_start_ray_commands"}
    assert needed - read(name).keys() == set()


@pytest.mark.parametrize("name", LAUNCHER)
def test_no_node_type_may_grow_past_the_whole_cluster(name: str) -> None:
    config = read(name)
    most = [node.get("max_workers", 0) for node in config.get("available_node_types", {}).values()]
    assert all(count <= config["max_workers"] for count in most)


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_launched_head_is_not_open_to_the_network(name: str) -> None:
    config = read(name)
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_accepts_the_file_strictly(name: str, crd_schemas: dict[str, Any]) -> None:
    assert crd_errors(crd_schemas[name], read(f"kuberay/{name}")) == []


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_refuses_a_misspelt_field_at_any_depth(name: str, crd_schemas: dict[str, Any]) -> None:
    document = read(f"kuberay/{name}")
    outer = copy.deepcopy(document)
    outer["spec"]["shutdownAfterJobFinnishes"] = True
    assert any("shutdownAfterJobFinnishes" in message for message in crd_errors(crd_schemas[name], outer))
    cluster = ray_cluster(document)
    cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    assert any("imagePullPolice" in message for message in crd_errors(crd_schemas[name], document))


@pytest.mark.parametrize("name", KUBERAY)
def test_every_pod_runs_with_token_and_own_ray(name: str) -> None:
    cluster = ray_cluster(read(f"kuberay/{name}"))
    assert cluster["rayVersion"] == PINS["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        assert pod["restartPolicy"] == "Never"
        for container in pod["containers"]:
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
            assert "ephemeral-storage" in container["resources"]["requests"]


def test_a_job_that_hangs_or_loses_its_head_is_not_paid_for_without_end() -> None:
    spec = read("kuberay/rayjob.yaml")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["activeDeadlineSeconds"] <= 7 * 24 * 3600
    assert spec["preRunningDeadlineSeconds"] <= 3600
    assert spec["ttlSecondsAfterFinished"] <= 3600
    assert spec["backoffLimit"] >= 1


def test_the_job_runs_the_workflow_up_to_evaluate_on_a_root_all_nodes_share() -> None:
    words = read("kuberay/rayjob.yaml")["spec"]["entrypoint"].split()
    assert words[:2] == ["python", "workflows/biomedclip.py"]
    assert words[-3:] == ["--until", "evaluate", "--refusal-is-final"]
    assert any(word.startswith("root=s3://") for word in words)


def test_the_paper_recipe_fits_every_cluster_that_is_made_for_it() -> None:
    recipe = load(ROOT / "workflows/configs/biomedclip_vit_b16.yaml")
    train = recipe.train.resources.workers * recipe.train.resources.gpus_per_worker
    serve = recipe.serve.resources.replicas * recipe.serve.resources.gpus_per_replica
    most = {}
    for name in ("aws.yaml", "gcp.yaml"):
        nodes = read(name)["available_node_types"].values()
        most[name] = sum(node["max_workers"] * node["resources"].get("GPU", 0) for node in nodes)
    for name in ("raycluster.yaml", "rayjob.yaml", "raycronjob.yaml"):
        most[name] = 0
        for group in ray_cluster(read(f"kuberay/{name}"))["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            most[name] += group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    assert {name for name, gpus in most.items() if gpus < max(train, serve)} == set()


@pytest.mark.parametrize("name", [*LAUNCHER, *(f"kuberay/{name}" for name in KUBERAY)])
def test_the_image_names_the_pinned_ray_and_the_dockerfiles_python(name: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    base = re.findall(r"^FROM python:(\d+\.\d+\.\d+)-", (CLUSTER / "Dockerfile").read_text(), flags=re.M)
    assert len(base) == 1
    found = images(read(name))
    assert found
    assert {image.rsplit(":", 1)[1] for image in found} == {f"{version}-ray{PINS['ray']}-py{base[0]}"}


@pytest.mark.parametrize("name", [*LAUNCHER, *(f"kuberay/{name}" for name in KUBERAY), "serve.yaml"])
def test_no_file_installs_anything_without_the_pins(name: str) -> None:
    installs = [text for text in strings(read(name)) if re.search(r"\b(pip|uv|conda)3? install\b", text)]
    for text in installs:
        packages = text.partition("constraints.txt")[2].split()
        assert packages, text
        assert all(package in PINS for package in packages)


def test_the_dockerfile_installs_only_by_the_pins_and_not_as_root_at_run_time() -> None:
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    installs = re.findall(r"pip install[^&\n]*", text)
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in install for install in installs)
    assert re.findall(r"^USER (\w+)", text, flags=re.M)[-1] == "ray"
    assert "RAY_AUTH_MODE=token" in text


def test_the_nvidia_runtime_gives_the_image_its_gpus() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert "NVIDIA_VISIBLE_DEVICES=all" in text
    assert re.findall(r"NVIDIA_DRIVER_CAPABILITIES=(\S+)", text) == ["compute,utility"]


def test_every_worker_on_google_cloud_has_an_account_that_is_not_the_heads() -> None:
    """The launcher gives one to the head alone; a worker without could not read the root."""
    kinds = read("gcp.yaml")["available_node_types"]
    accounts = {name: kind["node_config"].get("serviceAccounts") for name, kind in kinds.items()}
    assert accounts.pop("head") is None
    for [account] in accounts.values():
        assert account["email"].startswith("biomedclip-worker@")
        assert account["scopes"] == ["https://www.googleapis.com/auth/cloud-platform"]


def test_no_machine_on_google_cloud_has_a_public_address_and_all_stand_in_one_zone() -> None:
    config = read("gcp.yaml")
    assert config["provider"]["use_internal_ips"] is True
    for kind in config["available_node_types"].values():
        [network] = kind["node_config"]["networkInterfaces"]
        assert "accessConfigs" not in network
        [disk] = kind["node_config"]["disks"]
        assert config["provider"]["availability_zone"] in disk["initializeParams"]["diskType"]


@pytest.mark.parametrize(("name", "login"), [("aws.yaml", "docker login"), ("gcp.yaml", "configure-docker")])
def test_each_machine_logs_in_to_the_registry_that_holds_the_image(name: str, login: str) -> None:
    config = read(name)
    registry = config["docker"]["image"].partition("/")[0]
    assert any(login in command and registry in command for command in config["initialization_commands"])


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launchers_own_checks_pass(name: str) -> None:
    config = prepare_config(read(name))
    validate_config(config)
    assert config["head_start_ray_commands"] == read(name)["head_start_ray_commands"]


def test_serve_accepts_both_files_and_loses_no_field_of_them() -> None:
    alone = read("serve.yaml")
    inside = yaml.safe_load(read("kuberay/rayservice.yaml")["spec"]["serveConfigV2"])
    for config in (alone, inside):
        parsed = ServeDeploySchema.model_validate(config).model_dump(exclude_unset=True)
        assert parsed["applications"] == config["applications"]
        assert parsed["http_options"] == config["http_options"]
        assert [app["import_path"] for app in config["applications"]] == ["biomedclip_ray.serve.app:build"]
        Arguments.model_validate(config["applications"][0]["args"])


def test_a_misspelt_argument_of_the_served_application_is_refused() -> None:
    args = read("serve.yaml")["applications"][0]["args"]
    with pytest.raises(ValidationError, match="bundel"):
        Arguments.model_validate(args | {"bundel": args["bundle"]})


def test_the_service_never_wants_more_gpus_than_its_cluster_may_have() -> None:
    spec = read("kuberay/rayservice.yaml")["spec"]
    wanted = Arguments.model_validate(yaml.safe_load(spec["serveConfigV2"])["applications"][0]["args"]).resources
    [group] = spec["rayClusterConfig"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert wanted.max_replicas * wanted.gpus_per_replica <= group["maxReplicas"] * int(limits["nvidia.com/gpu"])
    assert wanted.cpus_per_replica <= int(limits["cpu"])
