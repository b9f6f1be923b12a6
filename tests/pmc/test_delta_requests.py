"""What a later inventory asks a logging server for, by what was changed in one article of eight images."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from biomedclip_ray.config import parse
from biomedclip_ray.figures.preprocess import preprocess
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.pmc.ingest import ingest
from biomedclip_ray.run.parts import in_process
from biomedclip_ray.sources.bucket import INVENTORIES
from biomedclip_ray.sources.inventory import resolve_inventory
from biomedclip_ray.store.product import Product
from tests.conftest import S3

ARTICLE = "PMC99000003.1"
XML = f"{ARTICLE}/{ARTICLE}.xml"


def _list(folder: Path, date: str) -> None:
    """Write an inventory of what lies there."""
    inventories = folder / INVENTORIES
    lines = ""
    for file in sorted((folder / "metadata").iterdir()):
        etag = hashlib.md5(file.read_bytes()).hexdigest()
        lines += f'"pmc-oa-opendata","metadata/{file.name}","2026-11-12T09:30:00.000Z","{etag}"\n'
    data = gzip.compress(lines.encode())
    (inventories / "data").mkdir(parents=True, exist_ok=True)
    (inventories / "data" / f"{date}.csv.gz").write_bytes(data)
    where = {"key": f"{INVENTORIES}/data/{date}.csv.gz", "MD5checksum": hashlib.md5(data).hexdigest()}
    manifest = {"fileFormat": "CSV", "fileSchema": "Bucket, Key, LastModifiedDate, ETag", "files": [where]}
    (inventories / date).mkdir()
    (inventories / date / "manifest.json").write_text(json.dumps(manifest))


def _rows(product: Product) -> pd.DataFrame:
    return pd.concat([table.to_pandas() for table in product.scan()], ignore_index=True)


def _run(root: Path, uri: str, date: str) -> list[Product]:
    source = {"uri": uri, "inventory": date, "select": {"licenses": "all"}}
    config = parse({"root": str(root), "source": source}, "test")
    versions = catalog.run(config, resolve_inventory(config), runner=in_process).product
    articles = ingest.run(config, versions, runner=in_process).product
    return [versions, articles, preprocess.run(config, articles, runner=in_process).product]


def _facts(**changed: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "metadata" / f"{ARTICLE}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))

    return change


def _in_xml(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / XML).read_bytes()
        assert old.encode() in data
        _replace(folder, XML, data.replace(old.encode(), new.encode(), 1))

    return change


def _replace(folder: Path, key: str, data: bytes) -> None:
    """Put an object anew, with its md5 in the metadata."""
    before = hashlib.md5((folder / key).read_bytes()).hexdigest()
    (folder / key).write_bytes(data)
    file = folder / "metadata" / f"{ARTICLE}.json"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, hashlib.md5(data).hexdigest()))


def _media(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in (folder / ARTICLE).iterdir() if p.suffix == ".jpg")


def _one_image(folder: Path) -> None:
    key = _media(folder)[2]
    _replace(folder, key, (folder / key).read_bytes() + b"trailer")


@pytest.mark.parametrize(
    ("change", "images"),
    [
        (_facts(license_code="CC BY-NC"), []),
        (_facts(pmid="123"), []),
        (_facts(doi="10.1/x", title="Another title", citation="Another"), []),
        (_facts(is_retracted="false", is_manuscript="False", is_historical_ocr="no"), []),
        (_in_xml("</article-title>", " anew</article-title>"), []),
        (_one_image, [2]),
    ],
    ids=["licence", "PMID", "DOI and title", "flags as text", "XML", "one image"],
)
def test_a_delta_asks_for_what_was_changed_alone(
    corpus: Path, tmp_path: Path, s3: S3, change: Callable[[Path], None], images: list[int]
) -> None:
    folder = tmp_path / "bucket"
    shutil.copytree(corpus / "bucket" / ARTICLE, folder / ARTICLE, copy_function=shutil.copyfile)
    (folder / "metadata").mkdir()
    shutil.copyfile(corpus / "bucket" / "metadata" / f"{ARTICLE}.json", folder / "metadata" / f"{ARTICLE}.json")
    _list(folder, "2026-11-19T01-00Z")
    before = _run(tmp_path / "root", str(folder), "2026-11-19T01-00Z")
    change(folder)
    _list(folder, "2026-11-20T01-00Z")
    uri = s3.upload(folder)
    s3.gets.clear()
    after = _run(tmp_path / "root", uri, "2026-11-20T01-00Z")
    wanted = [f"metadata/{ARTICLE}.json", XML, *(_media(folder)[number] for number in images)]
    assert sorted(key for key in s3.gets if "inventory" not in key and key) == sorted(wanted)
    assert len(_rows(before[2])) >= 6
    for synced, whole in zip(after, _run(tmp_path / "scratch", uri, "2026-11-20T01-00Z"), strict=True):
        pd.testing.assert_frame_equal(_rows(synced), _rows(whole))
        pd.testing.assert_frame_equal(synced.ledger().to_pandas(), whole.ledger().to_pandas())
