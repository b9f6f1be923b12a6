"""A later inventory: only what is new or changed is fetched, and what left leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from biomedclip_ray.config import Config, parse
from biomedclip_ray.figures.preprocess import preprocess
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.pmc.ingest import ingest
from biomedclip_ray.sources.bucket import INVENTORIES
from biomedclip_ray.sources.inventory import resolve_inventory
from biomedclip_ray.store.product import Product
from tests.conftest import S3

pytestmark = pytest.mark.usefixtures("ray_cluster")

OLD, NEW = "2026-11-19T01-00Z", "2026-11-20T01-00Z"
ADDED = {"PMC99000009.1", "PMC12419688.1", "PMC1298938.1"}
CHANGED = {"PMC99000002.2", "PMC2924383.1", "PMC99000006.1"}
WITHDRAWN = "PMC99000013.1"
REPLACED = "PMC2924383.1/pone.0012255.g003.jpg"


def _products(config: Config) -> list[Product]:
    versions = catalog.run(config, resolve_inventory(config)).product
    articles = ingest.run(config, versions).product
    return [versions, articles, preprocess.run(config, articles).product]


def _rows(product: Product) -> pd.DataFrame:
    return pd.concat([table.to_pandas() for table in product.scan()], ignore_index=True)


def _that_day(corpus: Path, folder: Path) -> Path:
    """The bucket as it stood on the older date: with the article withdrawn since, and one not yet retracted."""
    shutil.copytree(corpus / "bucket", folder, copy_function=shutil.copyfile)
    metadata = folder / "metadata" / "PMC99000006.1.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"is_retracted": False}))
    gone = json.loads((folder / "metadata" / "PMC99000007.1.json").read_text())
    text = json.dumps(gone).replace("PMC99000007", "PMC99000013")
    (folder / "metadata" / f"{WITHDRAWN}.json").write_text(text)
    shutil.copytree(folder / "PMC99000007.1", folder / WITHDRAWN, copy_function=shutil.copyfile)
    (folder / WITHDRAWN / "PMC99000007.1.xml").rename(folder / WITHDRAWN / f"{WITHDRAWN}.xml")
    shutil.rmtree(folder / INVENTORIES / NEW)
    # of PMC2924383 the PMID was corrected since, and one image of four replaced
    metadata, replaced = folder / "metadata" / "PMC2924383.1.json", folder / REPLACED
    md5 = hashlib.md5(replaced.read_bytes()).hexdigest()
    replaced.write_bytes(replaced.read_bytes() + b"trailer")
    text = metadata.read_text().replace(md5, hashlib.md5(replaced.read_bytes()).hexdigest())
    metadata.write_text(text.replace('"pmid": "20808861"', '"pmid": "1"'))
    return folder


def test_a_later_inventory_fetches_only_what_is_new_or_changed(corpus: Path, tmp_path: Path, s3: S3) -> None:
    def config(root: str, uri: str, date: str) -> Config:
        source = {"uri": uri, "inventory": date, "articles_per_part": 20, "select": {"licenses": "all"}}
        return parse({"root": str(tmp_path / root), "source": source}, "test")

    before = _products(config("root", str(_that_day(corpus, tmp_path / "old")), OLD))
    assert {"PMC99000006.1", WITHDRAWN} <= set(_rows(before[0])["article_id"])
    uri = s3.upload(corpus / "bucket")
    after = _products(config("root", uri, NEW))
    touched = {
        key.removeprefix("metadata/").split("/")[0].removesuffix(".json") for key in s3.gets if "inventory" not in key
    }
    assert touched == ADDED | CHANGED
    of_changed = [key for key in s3.gets if key.startswith(REPLACED.partition("/")[0])]
    assert sorted(of_changed) == ["PMC2924383.1/PMC2924383.1.xml", REPLACED]
    scratch = _products(config("scratch", uri, NEW))
    for synced, whole in zip(after, scratch, strict=True):
        assert synced.fingerprint == whole.fingerprint
        pd.testing.assert_frame_equal(
            _rows(synced).sort_values("article_id", kind="stable", ignore_index=True).drop(columns="part"),
            _rows(whole).sort_values("article_id", kind="stable", ignore_index=True).drop(columns="part"),
        )
        assert {c["unit"]: c for c in synced.manifest["counts"]} == {c["unit"]: c for c in whole.manifest["counts"]}
    ids = set(_rows(after[2])["article_id"])
    assert not ids & {"PMC99000006.1", WITHDRAWN}
    parent = after[0].manifest["parent"]
    assert parent["fingerprint"] == before[0].fingerprint
    assert parent["withdrawn"] == ["PMC99000006.1", WITHDRAWN]
    assert parent["reused_rows"] == after[0].manifest["counts"][0]["kept"] - len(ADDED) - len(
        CHANGED - {"PMC99000006.1"}
    )
    assert (before[0].config["date"], after[0].config["date"]) == (OLD, NEW)


@pytest.mark.slow
def test_what_the_parent_lost_to_the_network_is_tried_again(corpus: Path, tmp_path: Path, s3: S3) -> None:
    def config(root: str, uri: str, date: str) -> Config:
        source = {"uri": uri, "inventory": date, "select": {"licenses": "all"}, "resources": {"retries": 0}}
        limits = {stage: {"transient_limit": 1.0} for stage in ("catalog", "ingest", "preprocess")}
        return parse({"root": str(tmp_path / root), "source": source, **limits}, "test")

    uri = s3.upload(_that_day(corpus, tmp_path / "old"))
    whole = _rows(_products(config("whole", str(tmp_path / "old"), OLD))[2])
    of_article = whole.groupby("article_id")["media_name"].first()
    metadata, xml, picture = [a for a in of_article.index if a not in ADDED | CHANGED | {WITHDRAWN}][:3]
    lost = {
        f"metadata/{metadata}.json": ["503"],
        f"{xml}/{xml}.xml": ["503"],
        f"{picture}/{of_article[picture]}": ["503"],
    }
    s3.faults = {key: list(faults) for key, faults in lost.items()}
    before = _products(config("root", uri, OLD))
    assert [product.ledger().to_pandas()["transient"].sum() for product in before] == [1, 1, 1]
    later = s3.upload(corpus / "bucket")
    s3.gets.clear()
    after = _products(config("root", later, NEW))
    assert after[2].manifest["parent"]["fingerprint"] == before[2].fingerprint
    assert set(lost) <= set(s3.gets)
    assert not any(product.ledger().to_pandas()["transient"].any() for product in after)
    scratch = _products(config("scratch", str(corpus / "bucket"), NEW))
    for synced, made in zip(after, scratch, strict=True):
        pd.testing.assert_frame_equal(_rows(synced), _rows(made))


def test_the_same_command_stays_with_its_inventory_until_it_is_told_to_sync(corpus: Path, tmp_path: Path) -> None:
    from biomedclip_ray.run.record import Run

    bucket = tmp_path / "bucket"
    shutil.copytree(corpus / "bucket", bucket, copy_function=shutil.copyfile)
    shutil.rmtree(bucket / INVENTORIES / NEW)
    config = parse({"root": str(tmp_path / "root"), "source": {"uri": str(bucket)}}, "test")
    first = resolve_inventory(config)
    assert first.date == OLD
    Run(config, first, "catalog", "catalog").note("catalog", "ran", None, 0.0)
    shutil.copytree(corpus / "bucket" / INVENTORIES / NEW, bucket / INVENTORIES / NEW, copy_function=shutil.copyfile)
    assert resolve_inventory(config) == first
    assert resolve_inventory(config, sync=True).date == NEW
    slash = parse({"root": str(tmp_path / "root"), "source": {"uri": f"{bucket}/"}}, "test")
    assert resolve_inventory(slash) == first
    # a date that is asked for by name changes nothing for who asks for none, and is known when the source has forgotten
    # it
    named = parse({"root": str(tmp_path / "root"), "source": {"uri": str(bucket), "inventory": NEW}}, "test")
    later = resolve_inventory(named)
    Run(named, later, "catalog", "catalog").note("catalog", "ran", None, 0.0)
    assert resolve_inventory(config) == first
    shutil.rmtree(bucket / INVENTORIES / NEW)
    assert resolve_inventory(named) == later
