"""Work on CPUs starts no node with GPUs, on either autoscaler, however much of it there is: their own schedulers are
asked.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from biomedclip_ray.run.capacity import Capacity, NodeKind, of_file
from biomedclip_ray.run.placement import place
from biomedclip_ray.run.private import Autoscaler
from tests.run.autoscalers import started

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
HEAD = NodeKind("head", {"CPU": 0}, {}, 1, head=True)


def cluster(autoscaler: Autoscaler, says: bool = True, data: int = 2) -> Capacity:
    """Two kinds, 16 CPUs without and with a GPU; `says`: what they are for."""
    kinds = (
        HEAD,
        NodeKind("data", {"CPU": 16.0} | ({"pool_data": 1.0} if says else {}), {"pool": "data"} if says else {}, data),
        NodeKind(
            "gpu", {"CPU": 16.0, "GPU": 1.0} | ({"pool_gpu": 1.0} if says else {}), {"pool": "gpu"} if says else {}, 4
        ),
    )
    return Capacity(kinds, "a test", True, autoscaler)


BOTH = pytest.mark.parametrize("autoscaler", ["v1", "v2"])


@BOTH
def test_plain_requests_start_gpu_nodes_once_the_others_are_at_their_most(autoscaler: Autoscaler) -> None:
    """What must not happen: the reason for all of this."""
    assert started(cluster(autoscaler), [({"CPU": 1.0}, {})] * 64) == {"data": 2, "gpu": 2}


@BOTH
def test_cpu_work_never_starts_a_gpu_node_however_much_there_is(autoscaler: Autoscaler) -> None:
    here = cluster(autoscaler)
    assert started(here, [place(here, 1.0).bundle] * 20) == {"data": 2}
    assert started(here, [place(here, 1.0).bundle] * 500) == {"data": 2}


@BOTH
def test_gpu_work_starts_gpu_nodes_alone(autoscaler: Autoscaler) -> None:
    here = cluster(autoscaler)
    assert started(here, [place(here, 2.0, 1.0).bundle] * 3) == {"gpu": 3}


@BOTH
def test_work_beside_gpus_starts_no_data_node(autoscaler: Autoscaler) -> None:
    here = cluster(autoscaler)
    bundles = [place(here, 2.0, 1.0).bundle] * 2 + [place(here, 0.25, beside="gpus").bundle] * 8
    assert started(here, bundles) == {"gpu": 2}


@BOTH
def test_where_nothing_else_can_ever_come_cpu_work_takes_gpu_nodes(autoscaler: Autoscaler) -> None:
    none = cluster(autoscaler, data=0)
    assert started(none, [place(none, 1.0).bundle] * 20) == {"gpu": 2}
    small = dataclasses.replace(
        none,
        kinds=(
            HEAD,
            dataclasses.replace(none.kinds[1], most=2, resources={"CPU": 4.0, "pool_data": 1.0}),
            none.kinds[2],
        ),
    )
    assert started(small, [place(small, 8.0).bundle]) == {"gpu": 1}


@BOTH
def test_types_that_say_nothing_get_plain_requests(autoscaler: Autoscaler) -> None:
    here = cluster(autoscaler, says=False)
    placed = place(here, 1.0)
    assert placed.options == {"num_cpus": 1.0, "num_gpus": 0.0}
    assert started(here, [placed.bundle] * 20) == {"data": 2}


def test_the_first_autoscaler_is_never_given_a_label_and_the_second_no_resource() -> None:
    """v1 drops labels without a word and waits for ever."""
    assert place(cluster("v1"), 1.0).options == {"num_cpus": 1.0, "num_gpus": 0.0, "resources": {"pool_data": 0.001}}
    assert place(cluster("v2"), 1.0).options == {"num_cpus": 1.0, "num_gpus": 0.0, "label_selector": {"pool": "!gpu"}}


def test_a_thousand_small_tasks_fit_the_resource_of_one_node() -> None:
    kind = NodeKind("data", {"CPU": 100.0, "pool_data": 1.0}, {}, 1)
    here = Capacity((HEAD, kind, cluster("v1").kinds[2]), "a test", True, "v1")
    assert started(here, [place(here, 0.1).bundle] * 1000) == {"data": 1}


def test_nodes_that_are_all_there_will_be_are_all_used() -> None:
    assert place(dataclasses.replace(cluster("v2"), grows=False), 1.0).only == {}


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"])
def test_every_shipped_cluster_keeps_cpu_work_off_its_gpu_nodes(name: str) -> None:
    here = of_file(str(CLUSTER / name))
    found = started(here, [place(here, 1.0).bundle] * 5000)
    assert found == ({"cpu": 32} if "kuberay" in name else {"cpu_spot": 32, "cpu": 32})


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_launched_clusters_keep_it_off_on_the_first_autoscaler_too(name: str) -> None:
    here = dataclasses.replace(of_file(str(CLUSTER / name)), autoscaler="v1")
    assert started(here, [place(here, 1.0).bundle] * 5000) == {"cpu_spot": 32, "cpu": 32}
    assert started(here, [place(here, 4.0, 1.0).bundle] * 8) == {"gpu": 8}


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml", "rayservice.yaml"])
def test_kuberay_files_ask_for_the_autoscaler_that_knows_labels(name: str) -> None:
    spec: Any = yaml.safe_load((CLUSTER / "kuberay" / name).read_text())["spec"]
    inner = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    assert inner["autoscalerOptions"]["version"] == "v2"
    for group in inner["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert group["labels"] == {"pool": "gpu" if "nvidia.com/gpu" in limits else "data"}
