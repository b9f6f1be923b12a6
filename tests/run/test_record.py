"""The record of a run and the table at its end hold the same figures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from biomedclip_ray.config import Config
from biomedclip_ray.run.record import Inventory, Run, load_run
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.ledger import Count
from biomedclip_ray.store.place import StorageError
from biomedclip_ray.store.product import Product

INVENTORY = Inventory("2026-11-20T01-00Z", "c0ffee", ("data/a.csv.gz",))


def _config(root: Path) -> Config:
    return Config.model_validate({"root": str(root), "source": {"uri": "s3://somewhere"}})


def _finished(root: Path, stage: str, counts: list[Count]) -> Product:
    product = Product.plan(str(root), stage, 1, {}, [])
    with attempt(product, 0) as current:
        current.finish(counts)
    return product


def test_the_table_at_the_end_shows_every_unit_with_its_reasons_and_so_does_the_record(tmp_path: Path) -> None:
    run = Run(_config(tmp_path), INVENTORY, "catalog", "ingest")
    versions = [Count("article_version", 1200, 1100, {"retracted": 60, "license": 40})]
    catalog = _finished(tmp_path, "catalog", versions)
    figures = [Count("article", 1100, 1099, {"bad_xml": 1}), Count("figure", 5000, 5000, {})]
    articles = _finished(tmp_path, "ingest", figures)
    run.note("catalog", "skipped", catalog, 0.0)
    run.note("ingest", "resumed", articles, 12.34)
    shown = io.StringIO()
    run.show(Console(file=shown, width=140))
    rows = [line.split() for line in shown.getvalue().splitlines()]
    assert ["catalog", "skipped", "article_version", "1,200", "1,100"] in [row[:5] for row in rows]
    assert ["ingest", "resumed", "article", "1,100", "1,099"] in [row[:5] for row in rows]
    assert ["figure", "5,000", "5,000"] in rows
    for told in ("license 40", "retracted 60", "bad_xml 1", "12.3", articles.fingerprint):
        assert told in shown.getvalue()
    record = json.loads((tmp_path / "run.json").read_text())
    assert [(s["name"], s["state"], s["product"], s["seconds"]) for s in record["stages"]] == [
        ("catalog", "skipped", catalog.uri, 0.0),
        ("ingest", "resumed", articles.uri, 12.34),
    ]
    assert record["stages"][0]["counts"] == [
        {"unit": "article_version", "in": 1200, "kept": 1100, "dropped": {"license": 40, "retracted": 60}}
    ]


def test_a_stage_alone_leaves_what_the_record_says_of_the_others(tmp_path: Path) -> None:
    first = Run(_config(tmp_path), INVENTORY, "catalog", "ingest")
    for stage in ("catalog", "ingest"):
        first.note(stage, "ran", _finished(tmp_path, stage, []), 1.0)
    second = Run(_config(tmp_path), INVENTORY, "ingest", "ingest")
    second.note("ingest", "skipped", None, 0.0)
    assert [(s["name"], s["state"]) for s in load_run(str(tmp_path))["stages"]] == [
        ("catalog", "ran"),
        ("ingest", "skipped"),
    ]


def test_the_record_keeps_the_inventory_of_every_source(tmp_path: Path) -> None:
    Run(_config(tmp_path), INVENTORY, "catalog", "deploy").begin()
    other = Config.model_validate({"root": str(tmp_path), "source": {"uri": "/elsewhere"}})
    Run(other, Inventory("2026-01-01T01-00Z", "0", ()), "catalog", "deploy").begin()
    found = {uri: entry["date"] for uri, entry in load_run(str(tmp_path))["inventories"].items()}
    assert found == {"s3://somewhere": "2026-11-20T01-00Z", "/elsewhere": "2026-01-01T01-00Z"}


def test_an_empty_root_has_an_empty_record_and_one_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    assert load_run(str(tmp_path / "nothing")) == {"inventories": {}, "known": {}, "stages": []}
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"root=.*/file/root cannot be read"):
        load_run(str(tmp_path / "file" / "root"))
