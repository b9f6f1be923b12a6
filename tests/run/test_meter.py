"""What a run took is counted to the stage that ran, summed over its tries, and ends it where the budget is spent."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from biomedclip_ray.config import Budget, Config, ConfigError, parse
from biomedclip_ray.run import telemetry
from biomedclip_ray.run.capacity import Capacity, NodeKind
from biomedclip_ray.run.meter import Meter, Usage, unpriced
from biomedclip_ray.run.record import Run, load_run
from biomedclip_ray.run.runs import RUN_ID, RunRecord, find
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.product import Product

CPU, SPOT, GPU = ("cpu", "cpu"), ("cpu_spot", "cpu"), ("gpu", "gpu")


def record(root: Path) -> RunRecord:
    begun = RunRecord(str(root), [])
    begun.begin()
    return begun


def test_nodes_count_for_the_stage_that_ran_and_cost_their_own_price_or_their_kinds() -> None:
    usage = Usage({"cpu": 3.6, "cpu_spot": 1.8, "gpu": 36.0})
    usage.look(0, {CPU: 1})
    usage.turn(10, ("ingest", "/root/ingest/a"))
    usage.look(20, {CPU: 1, SPOT: 4})
    usage.look(120, {CPU: 1, SPOT: 2})
    usage.turn(220, ("train", "/root/train/b"))
    usage.look(220, {CPU: 1, GPU: 2})
    usage.turn(320, ("", None))
    ingest, train = (usage.spent[worked] for worked in (("ingest", "/root/ingest/a"), ("train", "/root/train/b")))
    assert (ingest.seconds, ingest.node_seconds) == (210, {"cpu": 210, "cpu_spot": 600})
    assert ingest.money == pytest.approx(210 * 0.001 + 600 * 0.0005)
    assert (train.seconds, train.node_seconds) == (100, {"cpu": 100, "gpu": 200})
    assert train.money == pytest.approx(100 * 0.001 + 200 * 0.01)
    assert usage.seconds == 320
    assert usage.nodes == [
        {"at": 0, "stage": "", "up": {"cpu": 1}},
        {"at": 10, "stage": "ingest", "up": {"cpu": 1}},
        {"at": 20, "stage": "ingest", "up": {"cpu": 1, "cpu_spot": 4}},
        {"at": 120, "stage": "ingest", "up": {"cpu": 1, "cpu_spot": 2}},
        {"at": 220, "stage": "train", "up": {"cpu": 1, "gpu": 2}},
        {"at": 320, "stage": "", "up": {"cpu": 1, "gpu": 2}},
    ]


def test_a_stage_costs_what_all_runs_took_that_worked_on_its_product_those_that_were_killed_too(tmp_path: Path) -> None:
    config = Config.model_validate({"root": str(tmp_path), "own": {"uri": "/own", "alone": True}})
    product = Product.plan(str(tmp_path), "curate", 1, {}, [])
    killed = Meter(record(tmp_path), Budget(prices={"cpu": 3600.0}), ["curate"], look=lambda: {CPU: 2})
    killed.usage.look(0, {CPU: 2})
    killed.usage.turn(0, ("curate", product.uri))
    killed.usage.look(50, {CPU: 2})
    killed._save()  # and nothing more is heard of it
    with Meter(record(tmp_path), Budget(prices={"cpu": 3600.0}), ["curate"], look=lambda: {CPU: 3}) as meter:
        run = Run(config, None, "curate", "curate")
        run.meter = meter
        with run.at_work("curate", product.uri), attempt(product, 0) as current:
            current.finish([])
            time.sleep(0.25)  # the record rounds to tenths of a second
        run.note("curate", "resumed", product, 0.1)
    [stage] = load_run(str(tmp_path))["stages"]
    here = stage["this_run"]
    assert 0.25 <= here["seconds"] < 40
    assert here["node_seconds"] == {"cpu": pytest.approx(3 * here["seconds"], abs=0.2)}
    assert stage["seconds"] == pytest.approx(50 + here["seconds"], abs=0.02)
    assert stage["node_seconds"] == {"cpu": pytest.approx(100 + 3 * here["seconds"], abs=0.2)}
    assert stage["money"] == pytest.approx(100 + 3 * here["seconds"], abs=0.2)
    told = find(str(tmp_path), meter.record.id)
    assert told is not None
    assert load_run(str(tmp_path))["run"] == meter.record.id
    assert [entry["stage"] for entry in told["spent"]] == ["", "curate"]
    assert [node["stage"] for node in told["nodes"]][-2:] == ["curate", ""]


def test_a_spent_budget_interrupts_the_run_and_says_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "_told", {})
    telemetry.tell("parts_done", 800, stage="ingest")
    telemetry.tell("parts_left", 1200, stage="ingest")
    budget = Budget(money=1.0, prices={"gpu": 36_000.0})
    stages = ["catalog", "ingest", "preprocess", "curate"]
    meter = Meter(record(tmp_path), budget, stages, look=lambda: {GPU: 1}, look_s=0.01)
    with pytest.raises(KeyboardInterrupt), meter:
        meter.turn("ingest", "/root/ingest/a")
        time.sleep(60)
    assert meter.record.over.startswith("budget.money=1 is spent (1.")
    assert meter.record.over.endswith("left to do: ingest, 1,200 of 2,000 parts; then preprocess, curate")


def test_what_is_left_of_training_is_told_in_steps_from_the_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "_told", {})
    telemetry.tell("train_steps", 4000)
    telemetry.tell("checkpoint_step", 1500)
    meter = Meter(record(tmp_path), Budget(hours=1e-6), ["train", "embed"], look=lambda: {GPU: 1}, look_s=0.01)
    with pytest.raises(KeyboardInterrupt), meter:
        meter.turn("train", "/root/train/a")
        time.sleep(60)
    assert meter.record.over.endswith("left to do: train, steps 1,500 to 4,000; then embed")


def test_tries_of_one_submission_share_a_budget_and_a_new_one_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_ID, "one")
    with Meter(record(tmp_path), Budget(), ["ingest"], look=lambda: {CPU: 1}) as meter:
        time.sleep(0.05)
    first = meter.record
    again = record(tmp_path)
    assert (first.id, again.id) == ("one", "one-2")
    assert again.spent_before[0] == pytest.approx(meter.usage.seconds, abs=0.02)
    monkeypatch.setenv(RUN_ID, "two")
    assert record(tmp_path).spent_before == (0, 0)


def test_money_without_the_price_of_a_node_that_may_come_is_refused() -> None:
    kinds = (NodeKind("head", {"CPU": 0.0}, {}, 1, True), NodeKind("cpu_spot", {"CPU": 32.0}, {}, 4))
    gpus = NodeKind("h200", {"CPU": 16.0, "GPU": 8.0}, {}, 2)
    capacity = Capacity((*kinds, gpus), "a test", True, "v2")
    assert unpriced(Budget(), capacity) == []
    assert unpriced(Budget(money=5, prices={"head": 1, "cpu": 1, "gpu": 3}), capacity) == []
    [said] = unpriced(Budget(money=5, prices={"head": 1, "cpu_spot": 1}), capacity)
    assert "node type h200 has no price; set budget.prices.gpu" in said
    with pytest.raises(ConfigError, match=r"budget\.money=5 needs what a node costs an hour"):
        parse({"root": "r", "budget": {"money": 5}}, "config.yaml")
