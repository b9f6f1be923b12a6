"""Preprints in MECA packages of bioRxiv's layout: every figure, the newest version, the licence of the XML; from a
folder and from S3.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile

from biomedclip_ray.config import SourceResources, parse
from biomedclip_ray.figures.preprocess import preprocess
from biomedclip_ray.images.image import decode
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.pmc.ingest import ingest
from biomedclip_ray.run.parts import in_process
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.bucket import ObjectError, SourceError
from biomedclip_ray.sources.inventory import entries, find_inventory, resolve_inventory
from biomedclip_ray.sources.meca import FolderShelf, MecaBucket, preprint_id
from biomedclip_ray.sources.open import open_bucket
from biomedclip_ray.store.product import Product
from tests.conftest import S3

XML = """{before}<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) Journal Archiving and Interchange DTD v1.2d1 20170631//EN" "JATS-archivearticle1.dtd">
<article article-type="article" xmlns:xlink="http://www.w3.org/1999/xlink"><front><journal-meta><journal-id
journal-id-type="publisher-id">BIORXIV</journal-id><journal-title>bioRxiv</journal-title></journal-meta><article-meta>
<article-id pub-id-type="doi">{doi}</article-id><article-version>1.{version}</article-version>
<title-group><article-title>On {doi} by Miller & Sons</article-title></title-group>
<permissions><license xlink:href="{license}"><p>A licence</p></license></permissions></article-meta></front>
<body><sec>{figures}</sec></body></article>"""
FIGURE = """<fig id="fig{n}"><label>Figure {n}.</label><caption><p>Section {n} of the liver in version {version}.</p></caption>
<graphic xlink:href="{stem}_fig{n}.tif" xlink:role="b"/></fig>"""
BY, NC = "http://creativecommons.org/licenses/by/4.0/", "http://creativecommons.org/licenses/by-nc/4.0/"


def _tif(seed: int) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8).repeat(30, 0).repeat(30, 1)
    tifffile.imwrite(sink, pixels, photometric="rgb", compression="zlib")
    return sink.getvalue()


def _package(doi: str, version: int, figures: int = 2, license: str = BY, **odd: Any) -> bytes:
    """A package as biorxiv-src-monthly has them: manifest.xml, directives, transfer, and content/ with XML, PDF and
    TIFFs.
    """
    stem, base = doi.rpartition("/")[2], odd.get("base", "")
    told = "".join(FIGURE.format(n=n, version=version, stem=stem) for n in range(1, figures + 1))
    xml = XML.format(doi=doi, version=version, license=license, figures=told, before=odd.get("before", ""))
    item = '<item id="{0}" type="{1}"><title>{0}</title><instance media-type="{2}" href="{3}"/></item>'
    items = [
        f'<item type="article" id="a"><instance media-type="application/xml" href="content/{stem}.xml"/>'
        f'<instance media-type="application/pdf" href="content/{stem}.pdf"/></item>'
    ]
    names = [f"{stem}_fig{n}.tif" for n in range(1, figures + 1)]
    items += [item.format(name, "figure", "image/tiff", f"content{odd.get('slash', '/')}{name}") for name in names]
    items.append(item.format("supp", "supplementary-material", "application/zip", "content/supplements/s1.zip"))
    manifest = f'<?xml version="1.0"?><manifest xmlns="http://www.manuscriptexchange.org">{"".join(items)}</manifest>'
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{base}manifest.xml", manifest)
        archive.writestr(f"{base}directives.xml", "<directives/>")
        archive.writestr(f"{base}content/{stem}.xml", xml)
        archive.writestr(f"{base}content/{stem}.pdf", b"%PDF")
        for n, name in enumerate(names):
            if n not in odd.get("without", ()):
                archive.writestr(f"{base}content/{name}", _tif(version * 100 + n))
        archive.writestr(f"{base}content/unnamed_by_manifest.tif", _tif(1))
    return sink.getvalue()


OLD, NEW = "10.1101/486050", "10.1101/2024.05.08.593085"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("biorxiv") / "meca"
    packages = {
        "Back_Content/Batch_01/0a.meca": _package(OLD, 1),
        "Current_Content/May_2024/1b.meca": _package(NEW, 1),
        "Current_Content/June_2024/2c.meca": _package(NEW, 2, figures=3),
        "Current_Content/June_2024/3d.meca": _package("10.1101/2024.06.01.000001", 1, license=NC),
        "Current_Content/June_2024/4e.meca": _package("10.1101/2024.06.01.000002", 1, base="4e/", before=" \n"),
        "Current_Content/June_2024/5f.meca": _package("10.1101/2024.06.01.000003", 1, slash="\\", without=(1,)),
        "Current_Content/June_2024/6a.MECA": b"no zip",
    }
    for n, (name, data) in enumerate(packages.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        os.utime(folder / name, (1_700_000_000 + n, 1_700_000_000 + n))
    return folder


def _config(root: Path, uri: str) -> Any:
    return parse({"root": str(root), "source": {"uri": uri, "articles_per_part": 2}}, "test")


def _run(config: Any) -> tuple[Product, Product, Product]:
    versions = catalog.run(config, resolve_inventory(config), runner=in_process).product
    articles = ingest.run(config, versions, runner=in_process).product
    return versions, articles, preprocess.run(config, articles, runner=in_process).product


def _rows(product: Product) -> pd.DataFrame:
    return pd.concat([table.to_pandas() for table in product.scan()], ignore_index=True)


def _fates(product: Product) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in product.ledger().to_pylist()}


def test_every_figure_of_the_newest_versions_is_a_pair_and_the_rest_is_accounted_for(
    folder: Path, tmp_path: Path
) -> None:
    config = _config(tmp_path / "root", str(folder))
    versions, articles, pairs = _run(config)
    rows = _rows(versions).set_index("article_id")
    assert sorted(rows.index) == ["RX20240508593085.2", "RX20240601000002.1", "RX20240601000003.1", "RX486050.1"]
    assert set(rows["license"]) == {"CC BY"}
    assert rows.loc["RX486050.1", ["doi", "title"]].tolist() == [OLD, f"On {OLD} by Miller & Sons"]
    fates = _fates(versions)
    assert fates.pop("RX20240508593085.1") == "superseded"
    assert fates.pop("RX20240601000001.1") == "license"
    assert list(fates.values()) == ["bad_package"]
    figures = _rows(pairs)
    assert sorted(figures["pair_id"]) == [
        *(f"RX20240508593085.2/fig{n}#0" for n in (1, 2, 3)),
        *(f"RX20240601000002.1/fig{n}#0" for n in (1, 2)),
        "RX20240601000003.1/fig1#0",
        *(f"RX486050.1/fig{n}#0" for n in (1, 2)),
    ]
    second = figures.set_index("pair_id").loc["RX20240508593085.2/fig2#0"]
    assert (second["caption"], second["original_format"], second["doi"]) == (
        "Section 2 of the liver in version 2.",
        "TIFF",
        NEW,
    )
    expected = tifffile.imread(io.BytesIO(_tif(201)))
    assert np.abs(decode(second["image"]).astype(int) - expected).mean() < 4
    assert set(_fates(pairs).values()) == {"missing_object"}  # named by the manifest, not in the zip
    for product in (versions, articles, pairs):
        for count in product.manifest["counts"]:
            assert count["in"] == count["kept"] + sum(count["dropped"].values())


def test_a_killed_run_goes_on_with_the_parts_that_miss(folder: Path, tmp_path: Path) -> None:
    config = _config(tmp_path / "root", str(folder))
    _, articles, pairs = _run(config)
    rows = _rows(pairs)
    for name in ("_MANIFEST.json", "ledger/part-00000.parquet"):
        pairs.place.delete(name)
    again = preprocess.run(config, articles, runner=in_process)
    assert again.state == "resumed"
    pd.testing.assert_frame_equal(_rows(again.product), rows)


def test_a_bucket_whose_reader_pays_gives_what_the_folder_gives(folder: Path, tmp_path: Path, s3: S3) -> None:
    here = _rows(_run(_config(tmp_path / "here", str(folder)))[2]).drop(columns="part")
    there = _rows(_run(_config(tmp_path / "there", f"{s3.upload(folder.parent)}/meca"))[2]).drop(columns="part")
    pd.testing.assert_frame_equal(*(rows.sort_values("pair_id", ignore_index=True) for rows in (here, there)))


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("names", [("b.meca", "a.meca"), ("May/x.meca", "June/x.meca", "July/x.meca")])
def test_of_packages_with_one_version_the_newest_counts_and_the_others_are_superseded(
    tmp_path: Path, names: tuple[str, ...], version: int
) -> None:
    folder = tmp_path / "meca"
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(_package(NEW, version, figures=n + 1))
        os.utime(folder / name, (1_700_000_000 + n, 1_700_000_000 + n))
    versions, articles, _ = _run(_config(tmp_path / "root", str(folder)))
    article, newest = f"RX20240508593085.{version}", len(names)
    assert _rows(versions)["json_key"].tolist() == [f"metadata/{article}/{names[-1]}.json"]
    assert [len(figures) for figures in _rows(articles)["figures"]] == [newest]
    ledger = sorted(versions.ledger().to_pylist(), key=lambda row: str(row["detail"]))
    assert [(row["id"], row["reason"], row["detail"]) for row in ledger] == [
        (article, "superseded", f"metadata/{article}/{name}.json by metadata/{article}/{names[-1]}.json")
        for name in sorted(names[:-1])
    ]
    [count] = [one for one in versions.manifest["counts"] if one["unit"] == "article_version"]
    assert (count["in"], count["kept"], count["dropped"]) == (newest, 1, {"superseded": newest - 1})


def test_the_inventory_follows_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a.meca").write_bytes(_package(NEW, 1))
    os.utime(tmp_path / "a.meca", (1_700_000_001, 1_700_000_001))
    bucket = open_bucket(str(tmp_path), SourceResources())
    inventory = find_inventory(bucket, "newest")
    [line] = [row for table in entries(bucket, inventory) for row in table.to_pylist()]
    assert (line["pmcid"], line["version"], line["key"]) == (
        "RX20240508593085",
        1,
        "metadata/RX20240508593085.1/a.meca.json",
    )
    (tmp_path / "c.meca").write_bytes(_package(OLD, 1))
    later = find_inventory(MecaBucket(FolderShelf(tmp_path)), "newest")
    assert (later.checksum, later.date) != (inventory.checksum, inventory.date)


@pytest.mark.parametrize(
    ("doi", "expected"),
    [("10.1101/486050", "RX486050"), (NEW, "RX20240508593085"), ("10.64898/2025.12.01.123456", "RX20251201123456")],
)
def test_an_id_is_the_digits_of_the_doi(doi: str, expected: str) -> None:
    assert preprint_id(doi) == expected
    assert preprint_id("10.1101/odd-one").removeprefix("RX").isdigit()


def test_hostile_packages_are_refused_by_name(tmp_path: Path) -> None:
    def zipped(**members: str) -> bytes:
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name.replace("_xml", ".xml"), data)
        return sink.getvalue()

    item = '<manifest><item type="article"><instance media-type="application/xml" href="{}"/></item></manifest>'
    cases = {
        "empty": (zipped(), "no manifest.xml in it"),
        "nothing": (zipped(manifest_xml="<manifest/>"), "manifest.xml names no article in XML"),
        "outside": (zipped(manifest_xml=item.format("../../etc/passwd")), "manifest.xml names no article in XML"),
        "cut": (_package(NEW, 1)[:900], "BadZipFile"),
    }
    for name, (data, _) in cases.items():
        (tmp_path / f"{name}.meca").write_bytes(data)
    bucket = MecaBucket(FolderShelf(tmp_path))
    for name, (_, told) in cases.items():
        with pytest.raises(ObjectError, match=told) as error:
            bucket.get(f"metadata/RX1.1/{name}.meca.json")
        assert error.value.reason is Reason.BAD_PACKAGE
    with pytest.raises(ObjectError, match="missing_object"):
        bucket.get("RX1.1/../../passwd.meca/content/x.xml")
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match="no package"):
        find_inventory(MecaBucket(FolderShelf(tmp_path / "none")), "newest")
