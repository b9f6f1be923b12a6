"""All eight stages on round numbers, and what can be asked of a plan."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from biomedclip_ray.config import STAGES, Config, load, parse
from biomedclip_ray.cost.estimate import money
from biomedclip_ray.cost.inputs import Cluster, Rates, World, bounded
from biomedclip_ray.cost.later import towers, whole
from biomedclip_ray.cost.offers import cheapest, delta, machines, preprints, serving, spent, spot_losses, waste_from
from biomedclip_ray.cost.tables import cases
from biomedclip_ray.run.capacity import of_file

ROOT = Path(__file__).resolve().parents[2]
RATES = Rates("by hand", 0.9, 0.9, 4.5, 9.0, 36.0, 1.5, 1e3, 1e5, 1e5, 5e4, 2e4, 0.36)
WORLD = World(versions=8e6, usable=0.75, figures=4.0, with_file=1.0, xml_bytes=1e5, media_bytes=1e6, kept=0.5)
CLUSTER = Cluster(
    nodes=4, cpus=25, gpu_nodes=2, gpus=4, efficiency=0.5, gbit_per_s=800, node_hour=2.0, gpu_hour=10.0, head_hour=1.0,
    gpu_tflops=100, mfu=0.5, fixed_s=0, model_s=0, train_s=0, node_start_s=0,
)  # fmt: skip
GPU = {"num_gpus": 1}


def config(**changes: Any) -> Config:
    train = {"epochs": 10, "batch": 1000, "micro_batches": 8, "checkpoint_steps": 1000}
    train["resources"] = {"workers": 8, "gpus_per_worker": 1}  # type: ignore[assignment]
    given = {
        "root": "r",
        "source": {"select": {"licenses": "all"}},
        "curate": {"splits": {"validation": 0.1, "test": 0.1}},
        "train": train,
        "evaluate": {"resources": GPU},
        "embed": {"resources": GPU},
        "serve": {"resources": {"replicas": 3, "gpus_per_replica": 1}},
    }
    return parse(given | changes, "test")


def by_name(plan: Any) -> dict[str, Any]:
    return {stage.name: stage for stage in plan.stages}


def test_all_eight_stages_are_planned_in_their_order() -> None:
    assert tuple(stage.name for stage in whole(config(), RATES, WORLD, CLUSTER).stages) == STAGES


def test_the_towers_flops_are_those_of_the_published_models() -> None:
    """A ViT-B/16 at 224 has 17.6 GMAC (35.1 GFLOP), one at L/14 81 GMAC; BERT-base 23 at 256 tokens."""
    paper = towers(load(ROOT / "workflows/configs/biomedclip_vit_b16.yaml", ["root=r"]))
    assert paper.image == pytest.approx(35.1e9, rel=0.02)
    assert paper.pair(256) - paper.image == pytest.approx(45.9e9, rel=0.03)
    assert paper.pair(512) == paper.pair(256)
    large = towers(load(ROOT / "workflows/configs/biomedclip_vit_l14.yaml", ["root=r"]))
    assert large.image == pytest.approx(162e9, rel=0.02)


def test_gpu_hours_are_flops_over_what_the_gpus_reach() -> None:
    found = by_name(whole(config(), RATES, WORLD, CLUSTER))
    kept, pair = 24e6 * 0.5, towers(config()).pair(120)
    assert found["train"].gpu_hours == pytest.approx(kept * 0.8 * 10 * 3 * pair / 50e12 / 3600)
    assert found["train"].wall == pytest.approx(found["train"].gpu_hours / 8)
    assert found["embed"].gpu_hours == pytest.approx(kept * pair / 50e12 / 3600)
    assert found["evaluate"].gpu_hours == pytest.approx(24e6 * 0.5 * 0.1 * pair / 50e12 / 3600)
    assert found["curate"].core_hours == pytest.approx(24e6 * 0.36 / 3.6e6)
    few = config(
        train={"epochs": 10, "batch": 1000, "micro_batches": 8, "resources": {"workers": 2, "gpus_per_worker": 1}}
    )
    assert by_name(whole(few, RATES, WORLD, CLUSTER))["train"].wall == pytest.approx(found["train"].gpu_hours / 2)


def test_a_batch_that_is_encoded_twice_costs_a_third_more() -> None:
    train = config().train.model_dump()
    twice = config(train=train | {"resources": train["resources"] | {"forward_pairs": 100}})
    once = by_name(whole(config(), RATES, WORLD, CLUSTER))["train"]
    assert by_name(whole(twice, RATES, WORLD, CLUSTER))["train"].gpu_hours == pytest.approx(once.gpu_hours * 4 / 3)


def test_without_gpus_the_stages_that_ask_for_them_are_named_and_towers_on_cpus_are_reckoned() -> None:
    bare = dataclasses.replace(CLUSTER, gpu_nodes=0)
    plan = whole(config(), RATES, WORLD, bare)
    assert [stage.name for stage in plan.stages] == ["catalog", "ingest", "preprocess", "curate"]
    assert plan.lacking.startswith("train, evaluate, embed, deploy ask for GPUs")
    on_cpus = config(train={"resources": {"workers": 4, "cpus_per_worker": 5}}, evaluate={}, embed={}, serve={})
    found = by_name(whole(on_cpus, RATES, WORLD, bare))
    assert list(found) == list(STAGES)
    assert found["train"].gpu_hours == 0
    assert found["train"].wall == pytest.approx(found["train"].core_hours / 20)


def test_money_is_each_kind_of_node_while_its_stages_run_and_the_head_all_the_time() -> None:
    plan = whole(config(), RATES, WORLD, CLUSTER)
    on_cpus = sum(stage.wall for stage in plan.stages if stage.name in STAGES[:4])
    assert spent(plan, CLUSTER) == pytest.approx(on_cpus * (4 * 2 + 1) + (plan.hours - on_cpus) * (2 * 10 + 1))


def test_low_and_high_hold_what_somebody_has_set() -> None:
    found = cases(config(), RATES, WORLD, CLUSTER, frozenset({"mfu"}))
    low, likely, high = (plan.hours for _, _, plan in found)
    assert low < likely < high
    assert [cluster.mfu for _, cluster, _ in found] == [0.5, 0.5, 0.5]
    assert (
        bounded(Cluster(1, 1), "dear", frozenset()).mfu
        < Cluster(1, 1).mfu
        < bounded(Cluster(1, 1), "cheap", frozenset()).mfu
    )


def test_the_cheapest_nodes_for_a_deadline_are_no_dearer_than_any_others_that_make_it() -> None:
    plan = whole(config(), RATES, WORLD, CLUSTER)
    found = cheapest(config(), RATES, WORLD, CLUSTER, plan.hours * 1.5)
    assert found is not None
    assert whole(config(), RATES, WORLD, found).hours <= plan.hours * 1.5
    cost = spent(whole(config(), RATES, WORLD, found), found)
    for nodes in (1, 2, 3, 4):
        for gpu_nodes in (1, 2):
            other = dataclasses.replace(CLUSTER, nodes=nodes, gpu_nodes=gpu_nodes)
            tried = whole(config(), RATES, WORLD, other)
            assert tried.hours > plan.hours * 1.5 or spent(tried, other) >= cost
    assert cheapest(config(), RATES, WORLD, CLUSTER, plan.hours * 0.9) is None


def test_nodes_beyond_what_the_source_answers_are_waste() -> None:
    """5,500 requests a second, 25 cores at 0.5 of 10 ms: 1,263 a second and node."""
    found = waste_from(config(), RATES, WORLD, CLUSTER)
    assert found["preprocess"] == 5
    assert found["catalog"] == 2  # a node has 25 x 16 requests in flight, each 100 ms: 4,000 a second


def test_a_lost_node_costs_its_parts_in_the_works_and_training_what_lies_behind_the_checkpoint() -> None:
    plan = whole(config(), RATES, WORLD, CLUSTER)
    found, stages = spot_losses(config(), plan, CLUSTER), by_name(plan)
    parts = 6e6 / config().source.articles_per_part
    ingest = stages["ingest"].wall * 4 / parts * 25 / 2
    assert (found["ingest"].node_hours, found["ingest"].money) == pytest.approx((ingest, ingest * 2))
    steps = 24e6 * 0.5 * 10 / 1000
    assert found["train"].node_hours == pytest.approx(stages["train"].wall * 1000 / steps / 2 * 2)
    assert found["train"].times == pytest.approx(0.02 * 2 * stages["train"].wall)


def test_a_month_of_serving_is_nodes_enough_for_the_replicas() -> None:
    month = serving(config(), whole(config(), RATES, WORLD, CLUSTER), CLUSTER)
    assert (month.replicas, month.nodes) == (3, 1)
    assert month.money == pytest.approx(730 * (10 + 1))


def test_a_months_delta_reads_the_new_alone_and_trains_nothing() -> None:
    fresh = by_name(delta(config(), RATES, dataclasses.replace(WORLD, month_versions=80e3), CLUSTER))
    every = by_name(whole(config(), RATES, WORLD, CLUSTER))
    assert "train" not in fresh
    for name in ("catalog", "ingest", "preprocess"):
        assert fresh[name].requests == pytest.approx(every[name].requests / 100)
        assert fresh[name].bytes_out > every[name].bytes_out  # all others are copied
    assert fresh["curate"].requests == every["curate"].requests
    assert money(fresh["preprocess"], CLUSTER) < money(every["preprocess"], CLUSTER)


def test_preprints_cost_their_reader_requests_and_bytes() -> None:
    low, likely, high = preprints(RATES, WORLD, dataclasses.replace(CLUSTER, get_million=0.4))["bioRxiv"]
    assert low.packages < likely.packages < high.packages
    assert likely.request_money == pytest.approx(likely.requests / 1e6 * 0.4)
    assert likely.egress_money == pytest.approx(likely.size / 1e9 * 0.09)


def test_the_machines_of_a_clusters_file_are_its_cheapest_types() -> None:
    prices = {"cpu_spot": 0.5, "cpu": 1.5, "gpu": 2.0, "head": 0.4}
    found = machines(of_file(str(ROOT / "cluster/aws.yaml")), prices, Cluster(1, 1))
    assert (found.cpu.name, found.gpu and found.gpu.name) == ("cpu_spot", "gpu")
    there = found.cluster
    assert (there.nodes, there.cpus, there.gpu_nodes, there.gpus) == (32, 32, 8, 1)
    assert (there.node_hour, there.gpu_hour, there.head_hour) == (0.5, 2.0, 0.4)
    pods = machines(of_file(str(ROOT / "cluster/kuberay/raycluster.yaml")), {}, Cluster(1, 1)).cluster
    assert pods.gpu_nodes > 0
    assert pods.node_hour == 0


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_script", ROOT / "workflows" / "plan.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_answers_for_a_clusters_file_with_prices_and_a_deadline(capsys: pytest.CaptureFixture[str]) -> None:
    recipe, file = str(ROOT / "workflows/configs/biomedclip_vit_b16.yaml"), str(ROOT / "cluster/aws.yaml")
    prices = "budget.prices={cpu_spot: 0.57, cpu: 1.43, gpu: 1.32, head: 0.40}"
    assert _script().main([recipe, "root=s3://b/r", prices, "--cluster", file, "--deadline", "300"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        "on 32 cpu_spot of 32 cores and 8 gpu of 1 GPUs",
        *STAGES,
        "Cheapest within 300 hours:",
        "More nodes than these are waste",
        "A spot node that is lost costs",
        "A month of serving: 2 replicas",
        "A month's new articles",
        "medRxiv (MECA, the reader pays)",
        "mfu 0.45 0.35 0.2",
    ):
        assert words in printed, words
    cluster = [recipe, "root=s3://b/r", "--cluster", file]
    assert _script().main([*cluster, "budget.prices={spot: 0.57}"]) == 2
    assert "budget.prices.spot: " in (said := capsys.readouterr().err) and "cpu_spot" in said
    assert _script().main([*cluster, "--nodes", "8"]) == 2
    assert "leave out --nodes" in capsys.readouterr().err
    for wrong in ("-5", "nan", "soon"):
        with pytest.raises(SystemExit, match="2"):
            _script().main([*cluster, f"--deadline={wrong}"])
    capsys.readouterr()
    assert _script().main([recipe, "root=s3://b/r"]) == 2
    assert "--cluster FILE, or --nodes N --cpus M" in capsys.readouterr().err
