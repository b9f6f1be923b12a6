"""What nodes may come, read from the file that a cluster is made from and from its autoscaler: never from the nodes that are up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml

from biomedclip_ray.config import ConfigError, PartResources, load, parse
from biomedclip_ray.run import private
from biomedclip_ray.run.capacity import Capacity, NodeKind, of_file
from biomedclip_ray.run.preflight import check_capacity
from tests.run.steps import steps

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
FULL_SIZE = sorted(path.name for path in (ROOT / "workflows/configs").glob("biomedclip_*.yaml"))

# name -> CPUs and GPUs in all, CPUs of the largest node, tasks of one CPU at once
SHIPPED = {
    "aws.yaml": (64 * 32 + 8 * 16, 8, 32, 64 * 32 + 8 * 16),
    "gcp.yaml": (64 * 32 + 8 * 12, 8, 32, 64 * 32 + 8 * 12),
    "kuberay/raycluster.yaml": (32 * 16 + 8 * 16, 8, 16, 640),
    "kuberay/rayjob.yaml": (32 * 16 + 8 * 16, 8, 16, 640),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_cluster_file_says_what_may_come(name: str) -> None:
    found = of_file(str(CLUSTER / name))
    cpus, gpus, largest, tasks = SHIPPED[name]
    assert found.grows
    assert (found.total("CPU"), found.total("GPU"), found.largest("CPU"), found.room(1.0)) == (
        cpus,
        gpus,
        largest,
        tasks,
    )
    assert found.room(2.0, 1.0) == 8
    assert found.fits(largest) and not found.fits(largest + 1) and not found.fits(1.0, 2.0)


def test_a_service_file_says_what_may_come() -> None:
    found = of_file(str(CLUSTER / "kuberay/rayservice.yaml"))
    assert found.grows and found.room(4.0, 1.0) >= 4


def test_machines_of_ones_own_have_no_size_before_they_are_up() -> None:
    found = of_file(str(CLUSTER / "on_prem.yaml"))
    assert not found.sized
    assert found.fits(64.0, 8.0)
    assert sum(kind.most for kind in found.kinds) == 3


@pytest.mark.parametrize("config", FULL_SIZE)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_at_full_size_passes_the_check_on_every_cluster_from_its_file_alone(
    name: str, config: str
) -> None:
    recipe = load(ROOT / "workflows/configs" / config, ["root=s3://bucket/run"])
    assert check_capacity(recipe, steps(recipe), of_file(str(CLUSTER / name))) == []


def test_a_task_must_fit_one_node_whatever_the_cluster_has_in_all() -> None:
    here = of_file(str(CLUSTER / "kuberay/raycluster.yaml"))
    config = parse(
        {
            "root": "/tmp/run",
            "ingest": {"resources": {"num_cpus": 17}},
            "embed": {"resources": {"num_cpus": 2, "num_gpus": 9}},
            "evaluate": {"resources": {"num_cpus": 1, "num_gpus": 2}},
        },
        "a test",
    )
    where = f"--cluster {CLUSTER / 'kuberay/raycluster.yaml'}"
    assert check_capacity(config, steps(config, ("ingest", "evaluate", "embed")), here) == [
        f"ingest.resources.num_cpus=17, but no node of {where} has more than 16 CPUs; lower it",
        f"evaluate.resources.num_gpus=2, but no node of {where} has more than 1 GPUs; lower it",
        f"embed.resources.num_gpus=9, but {where} has 8 GPUs; lower it",
    ]


def test_a_head_alone_without_an_autoscaler_is_told_from_a_key_that_is_too_large() -> None:
    head = Capacity((NodeKind("head", {"CPU": 0.0}, {}, 1, head=True),), "the cluster")
    [problem] = head.lacks("ingest.resources", PartResources())
    assert problem.startswith(
        "ingest.resources: no node of the cluster takes work, and no autoscaler runs beside its head"
    )
    assert "--cluster FILE" in problem


def test_cpus_and_gpus_that_no_kind_has_together_are_refused() -> None:
    here = of_file(str(CLUSTER / "aws.yaml"))
    config = parse({"root": "/tmp/run", "embed": {"resources": {"num_cpus": 32, "num_gpus": 1}}}, "a test")
    [problem] = check_capacity(config, steps(config, ("embed",)), here)
    assert problem.startswith("embed.resources: no node of --cluster ")
    assert problem.endswith("has num_cpus=32 and num_gpus=1 together; lower one")


def test_fewer_workers_than_the_kinds_may_have_in_all_bound_every_sum() -> None:
    data, gpu = NodeKind("data", {"CPU": 32.0}, {}, 10), NodeKind("gpu", {"CPU": 16.0, "GPU": 4.0}, {}, 3)
    head = NodeKind("head", {"CPU": 4.0}, {}, 1, head=True)
    here = Capacity((head, gpu, data), "a test", True, "v2", workers=5)
    assert here.total("CPU") == 4 + 5 * 32
    assert here.total("GPU") == 3 * 4
    assert here.room(8.0) == 5 * 4  # none on the head: it has 4 CPUs
    assert here.room(8.0, 2.0) == 3 * 2
    assert [node.get("GPU", 0) for node in here.nodes()] == [4, 4, 4, 0, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("applications: []", "neither a launcher's file"),
        ("a: [", "expected the node content"),
        (
            "provider: {type: aws}\navailable_node_types: {cpu: {max_workers: 2}}",
            "available_node_types.cpu does not say",
        ),
    ],
)
def test_a_file_that_says_nothing_of_nodes_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "cluster.yaml").write_text(content)
    with pytest.raises(ConfigError, match="--cluster") as error:
        of_file(str(tmp_path / "cluster.yaml"))
    assert message in str(error.value) or "while parsing" in str(error.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="--cluster nowhere.yaml"):
        of_file("nowhere.yaml")


@pytest.mark.parametrize(("folder", "version"), [("autoscaler/v2", "v2"), ("autoscaler/_private", "v1")])
def test_the_configuration_is_that_of_the_process_that_scales_this_cluster(
    tmp_path: Path, folder: str, version: str
) -> None:
    script = tmp_path / folder / "monitor.py"
    script.parent.mkdir(parents=True)
    script.write_text("import time; print('up', flush=True); time.sleep(60)")
    config = tmp_path / "bootstrap.yaml"
    config.write_text(yaml.safe_dump({"provider": {"type": "aws"}, "max_workers": 3}))

    def start(address: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), f"--gcs-address={address}", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        return process

    processes = [start("10.9.8.7:1", f"--autoscaling-config={config}"), start("10.9.8.7:2")]
    try:
        assert private.autoscaler_config("10.9.8.7:1") == (
            version,
            {"provider": {"type": "aws"}, "max_workers": 3},
            str(config),
        )
        assert private.autoscaler_config("10.9.8.7:2") is None  # it only counts the nodes that are there
        assert private.autoscaler_config("10.9.8.7:3") is None  # another cluster's
        config.unlink()
        with pytest.raises(LookupError, match=r"bootstrap\.yaml"):
            private.autoscaler_config("10.9.8.7:1")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_this_ray_has_every_private_name_that_the_program_leans_on() -> None:
    assert private.missing_names() == [], f"Ray {ray.__version__} lacks them: run/private.py says what each is for"
