"""The plan of a run is made before it begins, and stands beside what it took."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from biomedclip_ray.config import STAGES, load
from biomedclip_ray.cost.account import account_table, foresee, lines
from biomedclip_ray.cost.inputs import Rates
from biomedclip_ray.cost.source import known
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.run.capacity import Capacity, NodeKind, of_file
from biomedclip_ray.run.parts import in_process
from biomedclip_ray.run.record import Inventory
from biomedclip_ray.sample import make_bucket
from biomedclip_ray.sources.inventory import find_inventory
from biomedclip_ray.sources.open import open_bucket
from tests.conftest import S3

ROOT = Path(__file__).resolve().parents[2]
RATES = ROOT / "workflows" / "rates.json"
HERE = Capacity((NodeKind("2 CPUs", {"CPU": 2.0}, {}, 1, True),), "a test")


def planned(*overrides: str, capacity: Capacity = HERE) -> Any:
    config = load(ROOT / "workflows/configs/sample.yaml", overrides)
    inventory = find_inventory(open_bucket(config.source.uri, config.source.resources), "newest")
    return foresee(config, inventory, capacity, RATES)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("account") / "bucket"
    make_bucket(folder, n_articles=12, seed=1)
    return f"source.uri={folder}"


def test_a_run_of_few_articles_is_planned_for_those_alone(bucket: str) -> None:
    plan = planned(bucket)
    assert tuple(plan) == STAGES
    for stage in plan.values():
        assert 0 < stage["low"]["seconds"] <= stage["likely"]["seconds"] <= stage["high"]["seconds"] < 600


def test_of_a_bucket_of_ones_own_a_few_articles_tell_what_it_holds(bucket: str) -> None:
    config = load(ROOT / "workflows/configs/sample.yaml", [bucket, "root=/nowhere"])
    opened = open_bucket(config.source.uri, config.source.resources)
    rates = Rates(**json.loads(RATES.read_text()))
    facts, measured = known(config, find_inventory(opened, "newest"), rates)
    folder = Path(config.source.uri)
    texts = [path.stat().st_size for path in folder.glob("PMC*/*.xml")]
    images = [
        path.stat().st_size for path in folder.glob("PMC*/*") if path.suffix in (".jpg", ".png", ".tiff", ".webp")
    ]
    assert facts["versions"] == pytest.approx(len(texts), abs=1)
    assert facts["xml_bytes"] == pytest.approx(sum(texts) / len(texts), rel=0.1)
    assert facts["figures"] == pytest.approx(len(images) / len(texts), rel=0.3)
    assert facts["media_bytes"] == pytest.approx(sum(images) / len(images), rel=0.5)
    assert facts["image_scale"] == pytest.approx(facts["media_bytes"] / rates.image_bytes)
    assert (rates.request_ms > 0, measured.request_ms) == (True, 0)  # a folder is asked without a client


def test_of_a_bucket_of_ones_own_on_s3_nothing_is_fetched_but_its_inventory(bucket: str, s3_server: S3) -> None:
    uri = s3_server.upload(Path(bucket.removeprefix("source.uri=")))
    config = load(ROOT / "workflows/configs/sample.yaml", [f"source.uri={uri}", "root=/nowhere"])
    inventory = find_inventory(open_bucket(config.source.uri, config.source.resources), "newest")
    s3_server.hold(lambda key: "inventory-reports" not in key, after=0)  # whoever asks waits until it is released
    try:
        facts, rates = known(config, inventory, Rates(**json.loads(RATES.read_text())))
    finally:
        s3_server.release()
    assert facts == {"versions": 14.0, "usable": 1.0, "commercial": 1.0}
    assert rates.request_ms > 0


def test_pubmed_centrals_own_bucket_is_not_looked_into(tmp_path: Path) -> None:
    config = load(ROOT / "workflows/configs/sample.yaml", ["source.uri=s3://pmc-oa-opendata", f"root={tmp_path}"])
    rates = Rates(**json.loads(RATES.read_text()))
    assert known(config, Inventory("2026-11-01T01-00Z", "0" * 32, ("none.csv.gz",)), rates) == ({}, rates)


def test_a_finished_catalog_is_asked_for_its_articles_and_a_source_that_is_gone_for_nothing(tmp_path: Path) -> None:
    make_bucket(tmp_path / "bucket", n_articles=12, seed=1)
    config = load(
        ROOT / "workflows/configs/sample.yaml", [f"source.uri={tmp_path / 'bucket'}", f"root={tmp_path / 'root'}"]
    )
    inventory = find_inventory(open_bucket(config.source.uri, config.source.resources), "newest")
    catalog.run(config, inventory, runner=in_process)
    rates = Rates(**json.loads(RATES.read_text()))
    before, _ = known(config, inventory, rates)
    shutil.rmtree(tmp_path / "bucket")
    after, _ = known(config, inventory, rates)
    assert [after[name] for name in ("versions", "usable")] == [before[name] for name in ("versions", "usable")]
    assert "xml_bytes" in before and "xml_bytes" not in after
    assert tuple(foresee(config, inventory, HERE, RATES)) == STAGES
    shutil.rmtree(tmp_path / "root")
    assert "cannot be read" in foresee(config, inventory, HERE, RATES)


def test_money_follows_the_prices_and_what_is_not_planned_is_said(bucket: str) -> None:
    aws = of_file(str(ROOT / "cluster/aws.yaml"))
    plan = planned(bucket, "budget.prices={cpu: 3.6, gpu: 36, head: 0}", capacity=aws)
    ingest = plan["ingest"]["likely"]
    assert ingest["money"] == pytest.approx(ingest["seconds"] * 32 * 0.001, rel=0.01)
    unsized = Capacity((NodeKind("not up yet", {}, {}, 3),), "a test")
    assert planned(bucket, capacity=unsized).startswith("a test: no node type says how many CPUs it has")
    assert foresee(load(ROOT / "workflows/configs/sample.yaml"), None, HERE, RATES).startswith("own.alone=true")


def test_what_a_stage_took_over_all_its_runs_stands_beside_its_plan_and_what_was_skipped_does_not() -> None:
    def of(seconds: float) -> dict[str, Any]:
        return {bound: {"seconds": seconds * n, "money": n} for bound, n in (("low", 1), ("likely", 2), ("high", 3))}

    plan = {"catalog": of(5), "ingest": of(10), "train": of(50)}
    stages = [
        {"name": "catalog", "state": "skipped", "seconds": 9.0},
        {"name": "ingest", "state": "resumed", "seconds": 30.0, "money": 4.0},
        {"name": "train", "state": "ran", "seconds": 80.0, "money": 1.0},
        {"name": "deploy", "state": "ran", "seconds": 8.0},
    ]
    ingest, train, total = lines(plan, stages)
    assert (ingest["name"], ingest["took"], ingest["likely"], ingest["ratio"]) == ("ingest", 30.0, 20, 1.5)
    assert (train["ratio"], train["paid"], train["money"]) == (0.8, 1.0, 2)
    assert (total["took"], total["likely"], total["paid"]) == (110.0, 120, 5.0)
    assert account_table(plan, stages) is not None
    assert account_table("no plan", stages) is None
    assert lines(plan, stages[:1]) == []
