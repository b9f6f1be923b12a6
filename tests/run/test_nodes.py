"""What a stage asks of a cluster that grows: as many actors as may come, as many tasks as are left, nodes for each part
of training.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from biomedclip_ray.config import ConfigError, PartResources, TrainResources, load
from biomedclip_ray.run.capacity import Capacity, NodeKind, of_file
from biomedclip_ray.run.nodes import Demand
from biomedclip_ray.run.parts import pool_size
from biomedclip_ray.run.placement import Placement, place
from biomedclip_ray.run.private import Autoscaler
from biomedclip_ray.serve.app import Arguments
from biomedclip_ray.serve.deploy import check as check_deploy
from biomedclip_ray.serve.deploy import placed as placed_replicas
from biomedclip_ray.train.nodes import placed
from tests.run.autoscalers import started

ROOT = Path(__file__).resolve().parents[2]
RECIPE = load(ROOT / "workflows/configs/biomedclip_vit_b16.yaml", ["root=s3://bucket/run"])
SHIPPED = ["aws.yaml", "gcp.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"]
BOTH = pytest.mark.parametrize("autoscaler", ["v1", "v2"])


def cluster(name: str, autoscaler: Autoscaler = "v2") -> Capacity:
    return dataclasses.replace(of_file(str(ROOT / "cluster" / name)), autoscaler=autoscaler)


def by_kind(found: dict[str, int]) -> tuple[int, int]:
    """Data nodes, on spot or not, and GPU nodes."""
    gpus = found.pop("gpu", 0)
    return sum(found.values()), gpus


# -- parts ------------------------------------------------------------------------------------------------------------


def pool(capacity: Capacity, resources: PartResources, parts: int) -> int:
    return pool_size(capacity, place(capacity, resources.num_cpus, resources.num_gpus), resources, parts)


@pytest.mark.parametrize("name", SHIPPED)
def test_actors_with_gpus_are_as_many_as_gpu_nodes_may_come(name: str) -> None:
    assert pool(cluster(name), PartResources(num_cpus=2, num_gpus=1), 18_000) == 8
    assert pool(cluster(name), PartResources(num_cpus=2, num_gpus=0.5), 18_000) == 16
    assert pool(cluster(name), PartResources(num_cpus=2, num_gpus=1, concurrency=3), 18_000) == 3
    assert pool(cluster(name), PartResources(num_cpus=2, num_gpus=1), 5) == 5


def test_actors_without_gpus_leave_half_a_cpu_to_those_that_write() -> None:
    two = Capacity((NodeKind("here", {"CPU": 2.0}, {}, 1, head=True),), "a test")
    assert pool(two, PartResources(num_cpus=0.5), 100) == 3
    assert pool(two, PartResources(num_cpus=2), 100) == 1


def test_as_many_tasks_are_asked_for_as_are_left_and_may_run_at_once() -> None:
    here = cluster("kuberay/raycluster.yaml")
    work, write = place(here, 2.0, 1.0), place(here, 0.25, beside="gpus")
    demand = Demand("embed", here, work, (write,), most=8, parts=20, stalled_s=600, wait_s=600)
    assert demand.bundles(0) == [work.bundle] * 8 + [write.bundle]
    assert demand.bundles(17) == [work.bundle] * 3 + [write.bundle]
    assert demand.bundles(20) == []
    assert started(here, demand.bundles(0)) == {"gpu": 8}
    assert started(here, demand.bundles(17)) == {"gpu": 3}


@BOTH
@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_a_data_stage_from_the_head_alone_brings_data_nodes_by_its_parts(name: str, autoscaler: Autoscaler) -> None:
    here = cluster(name, autoscaler)
    work = place(here, 1.0)
    demand = Demand(
        "preprocess", here, work, (), most=here.room(1.0, 0.0, work.kinds), parts=18_000, stalled_s=6, wait_s=6
    )
    data = sum(kind.most for kind in work.kinds)
    assert by_kind(started(here, demand.bundles(0))) == (data, 0)
    assert by_kind(started(here, demand.bundles(18_000 - 60))) == (2, 0)


# -- training ---------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_training_on_gpus_brings_gpu_nodes_alone_and_feeds_itself_there(name: str, autoscaler: Autoscaler) -> None:
    here = cluster(name, autoscaler)
    places = placed(RECIPE.train.resources, here)
    assert places.feed.bundles(0) == []
    tasks = [places.worker.bundle] * 8 + [places.feed.work.bundle] * 40 + [places.validation.bundle]
    assert started(here, tasks) == {"gpu": 8}


@BOTH
def test_a_feed_that_gpu_nodes_leave_no_cpu_brings_data_nodes(autoscaler: Autoscaler) -> None:
    here = cluster("aws.yaml", autoscaler)
    places = placed(
        TrainResources(workers=8, cpus_per_worker=16, gpus_per_worker=1, feed_cpus=1, feed_concurrency=64), here
    )
    bundles = [places.worker.bundle] * 8 + list(places.feed.bundles(0))
    assert by_kind(started(here, bundles)) == (3, 8)


def test_training_without_gpus_goes_where_data_stages_go() -> None:
    here = cluster("aws.yaml")
    places = placed(TrainResources(workers=2, cpus_per_worker=16, feed_cpus=1, feed_concurrency=4), here)
    assert by_kind(started(here, [places.worker.bundle] * 2 + list(places.feed.bundles(0)))) == (2, 0)


# -- deploying --------------------------------------------------------------------------------------------------------


def arguments(**resources: object) -> Arguments:
    return Arguments.model_validate({"bundle": "b", "index": "i", "resources": resources})


@BOTH
def test_replicas_with_gpus_and_those_who_read_for_them_bring_gpu_nodes_alone(autoscaler: Autoscaler) -> None:
    here = cluster("aws.yaml", autoscaler)
    engine, ingress = placed_replicas(RECIPE.serve.resources, here)
    assert started(here, [engine.bundle] * 2 + [ingress.bundle]) == {"gpu": 2}


def test_deploying_is_refused_for_what_can_never_come_not_for_what_is_not_up() -> None:
    here = cluster("aws.yaml")
    with pytest.raises(
        ConfigError, match=r"gpus_per_replica: the application needs 9 GPUs, --cluster .*aws.yaml has 8"
    ):
        check_deploy(arguments(replicas=9, max_replicas=9, gpus_per_replica=1), here)
    with pytest.raises(ConfigError, match=r"cpus_per_replica=20 with gpus_per_replica=1: no node of .* has as many"):
        check_deploy(arguments(cpus_per_replica=20, gpus_per_replica=1), here)


# -- nodes that are up ------------------------------------------------------------------------------------------------


def test_a_node_is_one_that_a_task_may_run_on_by_label_or_by_resource() -> None:
    by_label = Placement(1.0, 0.0, (), {"pool": "!gpu"}, {})
    assert (
        by_label.admits({}, {"pool": "data"}) and by_label.admits({}, {}) and not by_label.admits({}, {"pool": "gpu"})
    )
    beside = Placement(1.0, 0.0, (), {"pool": "gpu"}, {})
    assert beside.admits({}, {"pool": "gpu"}) and not beside.admits({}, {})
    by_resource = Placement(1.0, 0.0, (), {}, {"pool_data": 0.001})
    assert by_resource.admits({"pool_data": 1.0}, {}) and not by_resource.admits({"CPU": 8.0}, {})
