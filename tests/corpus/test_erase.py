"""Erasure: what must go leaves every product of a root, counts still add up, and it does not come back."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from biomedclip_ray.config import Config, parse
from biomedclip_ray.corpus.curate import curate
from biomedclip_ray.corpus.erase import erase
from biomedclip_ray.corpus.own import own_pairs, side_by_side
from biomedclip_ray.figures.preprocess import preprocess
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.pmc.ingest import ingest
from biomedclip_ray.run.parts import in_process
from biomedclip_ray.sample import make_bucket
from biomedclip_ray.sources.inventory import resolve_inventory
from biomedclip_ray.sources.own_files import find_files
from biomedclip_ray.store.attempt import Attempt, attempt
from biomedclip_ray.store.ledger import Count, Ledger
from biomedclip_ray.store.product import Product


def _png(seed: int) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def _config(tmp_path: Path, **more: Any) -> Config:
    own = {"uri": str(tmp_path / "in"), "pairs_per_part": 16, **more}
    source = {"uri": str(tmp_path / "bucket"), "articles_per_part": 12}
    return parse({"root": str(tmp_path / "root"), "own": own, "source": source}, "test")


def _own(config: Config) -> Product:
    assert config.own.uri is not None
    files = find_files(config.own.uri, config.own.pairs_per_part)
    return own_pairs.run(config, files, runner=in_process).product


def _all_rows(root: Path) -> str:
    """Every cell of every Parquet file below a root, as text, and the bytes of all other files."""
    said = []
    for path in sorted(root.rglob("*")):
        if path.suffix == ".parquet":
            said.append(str(pq.read_table(path).to_pylist()))
        elif path.is_file():
            said.append(path.read_bytes().decode("latin-1"))
    return "\n".join(said)


def _balanced(product: Product) -> None:
    product = Product.load(product.root, product.stage, product.fingerprint)
    for count in product.manifest["counts"]:
        assert count["in"] == count["kept"] + sum(count["dropped"].values())
    rows = sum(file["rows"] for file in product.manifest["files"] if file["name"].startswith("data/"))
    assert rows == sum(table.num_rows for table in product.scan())


@pytest.fixture
def made(tmp_path: Path) -> tuple[Config, dict[str, Product]]:
    """Pairs of a hospital beside PubMed Central's, their corpus, an index of it and a bundle."""
    make_bucket(tmp_path / "bucket", n_articles=16, seed=4)
    n = 40
    columns: dict[str, list[Any]] = {
        "image": [_png(row) for row in range(n)],
        "caption": [f"Radiograph of Mrs Nobody{row // 2}, view {row % 2}" for row in range(n)],
        "patient": [f"P-{row // 2}" for row in range(n)],
        "split": ["train"] * n,
    }
    columns["image"][21], columns["caption"][21] = (
        columns["image"][20],
        columns["caption"][20],
    )  # a duplicate of patient 10
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "in" / "scans.parquet", row_group_size=16)
    config = _config(tmp_path)
    versions = catalog.run(config, resolve_inventory(config), runner=in_process).product
    articles = ingest.run(config, versions, runner=in_process).product
    pmc = preprocess.run(config, articles, runner=in_process).product
    own = _own(config)
    both = side_by_side.run(config, pmc, own, runner=in_process).product
    corpus = curate.run(config, both, runner=in_process).product
    bundle = Product.plan(config.root, "train", 1, {}, [both, corpus])
    with attempt(bundle) as current:
        current.finish([Count("pair")], {"bundle_id": "b0b0b0b0b0b0"})
    index = Product.plan(config.root, "embed", 1, {}, [bundle, both, corpus])
    with attempt(index, both.parts) as current:
        for part in range(both.parts):
            kept = corpus.read(part)["kept"]
            rows = both.read(part, ["pair_id", "article_id", "caption", "image"]).filter(kept)
            ledger = corpus.read_ledger(part).slice(0, 0)
            current.write_part(part, rows, ledger, {"pair": (rows.num_rows, rows.num_rows)})
        current.place.write("index.lance/data/0.lance", b"Mrs Nobody10 in a table")
        current.finish_parts(0)
    (tmp_path / "root" / "report.html").write_text("Mrs Nobody10 in a report")
    products = {"catalog": versions, "ingest": articles, "pmc": pmc, "own": own, "both": both, "corpus": corpus}
    return config, products | {"bundle": bundle, "index": index}


def test_a_patient_leaves_every_product_and_the_bundles_that_saw_it_are_named(
    made: tuple[Config, dict[str, Product]], tmp_path: Path
) -> None:
    config, products = made
    own = pd.concat([table.to_pandas() for table in products["own"].scan()])
    [row] = own[own["caption"].str.contains("Nobody10,")].to_dict("records")
    before = _all_rows(tmp_path / "root")
    traces = [row["pair_id"], row["article_id"], row["sha256"], "Nobody10,", "Nobody10 in", str(row["image"])]
    assert all(trace in before for trace in traces)
    done = erase(config, "P-10")
    after = _all_rows(tmp_path / "root")
    assert not [trace for trace in traces if trace in after]
    assert "Nobody11," in after
    assert row["image"] not in b"".join(path.read_bytes() for path in (tmp_path / "root").rglob("*.parquet"))
    assert done.bundles == [f"b0b0b0b0b0b0 ({products['bundle'].uri})"]
    assert done.again == [f"embed/{products['index'].fingerprint}"]
    assert not products["index"].finished and products["index"].done_parts() == set(range(products["both"].parts))
    for name in ("catalog", "ingest", "pmc", "own", "both", "corpus"):
        _balanced(products[name])
    counts = Product.load(config.root, "preprocess", products["own"].fingerprint).manifest["counts"]
    assert counts == [{"unit": "picture", "in": 38, "kept": 38, "dropped": {}}]
    both, corpus = (Product.load(config.root, p.stage, p.fingerprint) for p in (products["both"], products["corpus"]))
    for part in range(both.parts):  # still aligned row by row
        assert both.read(part, ["pair_id"])["pair_id"] == corpus.read(part, ["pair_id"])["pair_id"]


def test_what_was_erased_does_not_come_back_under_another_configuration(
    made: tuple[Config, dict[str, Product]], tmp_path: Path
) -> None:
    config, products = made
    erase(config, "P-3")
    assert _own(config).fingerprint == products["own"].fingerprint  # skipped, and stays without it
    again = _own(_config(tmp_path, pairs_per_part=8))
    assert again.fingerprint != products["own"].fingerprint
    assert again.manifest["counts"] == [
        {"unit": "picture", "in": 40, "kept": 37, "dropped": {"duplicate": 1, "erased": 2}}
    ]
    assert "P-3" not in (tmp_path / "root" / "erased.json").read_text()
    assert len(json.loads((tmp_path / "root" / "erased.json").read_text())["sha256"]) == 4


def test_a_patients_folder_leaves_the_ledger_too(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "scans" / "P-10").mkdir(parents=True)
    (folder / "scans" / "P-10" / "0.png").write_bytes(_png(0))
    (folder / "scans" / "1.png").write_bytes(_png(1))
    names = ["scans/P-10/0.png", "scans/P-10/gone.png", "../P-10/x.png", "scans/1.png", "scans/P-100/gone.png"]
    rows = [{"file_name": name, "text": f"View {n}", "patient": "P-10"} for n, name in enumerate(names)]
    rows[3]["patient"] = rows[4]["patient"] = "10"
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = _config(tmp_path)
    own = _own(config)
    assert own.manifest["counts"][0]["dropped"] == {"missing_object": 3}
    erase(config, "P-10")
    said = _all_rows(tmp_path / "root")
    assert not re.search(r"P-10\b", said) and "scans/P-100/gone.png" in said
    _balanced(own)


def test_an_article_and_a_pair_of_pubmed_central_go_alone(
    made: tuple[Config, dict[str, Product]], tmp_path: Path
) -> None:
    config, products = made
    pmc = pd.concat([table.to_pandas() for table in products["pmc"].scan()])
    article = pmc["article_id"].value_counts().index[0]
    other = pmc[pmc["article_id"] != article].iloc[0]
    erase(config, article)
    said = _all_rows(tmp_path / "root")
    assert f"'{article}'" not in said and f"{article}/" not in said
    erase(config, other["pair_id"])
    left = {
        name: pd.concat([table.to_pandas() for table in Product.load(config.root, p.stage, p.fingerprint).scan()])
        for name, p in products.items()
        if name in ("pmc", "corpus", "catalog")
    }
    assert len(left["pmc"]) == len(pmc) - (pmc["article_id"] == article).sum() - 1
    assert other["pair_id"] not in set(left["corpus"]["pair_id"]) | set(left["pmc"]["pair_id"])
    assert other["article_id"] in set(left["catalog"]["article_id"])
    for name in ("catalog", "ingest", "pmc", "own", "both", "corpus"):
        _balanced(products[name])


def test_an_id_that_nothing_bears_changes_nothing(made: tuple[Config, dict[str, Product]], tmp_path: Path) -> None:
    config, _ = made
    before = _all_rows(tmp_path / "root")
    done = erase(config, "P-1000")
    assert (done.rows, done.bundles, done.again) == ({}, [], [])
    assert _all_rows(tmp_path / "root") == before


def test_a_pair_leaves_the_evaluation_too_and_that_is_made_anew(tmp_path: Path) -> None:
    config = _config(tmp_path)
    pool = Product.plan(config.root, "evaluate", 1, {}, [])
    ledger = Ledger("evaluate")
    ledger.count("held-out pair", 3, 3)
    with attempt(pool, 1) as current:
        rows = {"pair_id": [f"PMC{n}.1/F1#0" for n in range(3)], "image_vector": [[0.25], [0.5], [0.75]]}
        current.write_part(0, pa.table(rows), ledger.table(), ledger.counts)
        current.place.write("rows/pool.txt", b"PMC1.1/F1#0 at rank 3")
        current.finish_parts(0)
    done = erase(config, "PMC1")
    name = f"evaluate/{pool.fingerprint}"
    assert (done.rows, done.again) == ({name: 1}, [name])
    assert Attempt(pool, "resumed").read(0)["image_vector"].to_pylist() == [[0.25], [0.75]]
    assert not pool.finished and "PMC1." not in _all_rows(tmp_path / "root")
    assert Attempt(pool, "resumed").counts(0) == {"held-out pair": [2, 2]}


def test_an_erasure_that_was_killed_is_finished_by_the_same_command(
    made: tuple[Config, dict[str, Product]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are out, and no manifest says so yet: files have other sizes than it tells, and readers trust it."""
    config, products = made

    def killed(self: Attempt) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Attempt, "amend", killed)
        erase(config, "P-10")
    erase(config, "P-10")
    for product in products.values():
        if product.finished:
            there = Product.load(product.root, product.stage, product.fingerprint)
            rows = sum(table.num_rows for table in there.scan())
            assert rows == sum(file["rows"] for file in there.manifest["files"] if file["name"].startswith("data/"))
