"""Keys, shards that are there already, and features: what needs no cluster."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biomedclip_ray.corpus.card import FACTS, readme
from biomedclip_ray.corpus.export import Shard, sample_key, write_shard
from biomedclip_ray.schema import CORPUS, PAIRS
from biomedclip_ray.store.attempt import Attempt, attempt
from biomedclip_ray.store.ledger import Ledger
from biomedclip_ray.store.parquet import conform
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product

IDS = [
    "PMC1.1/pone.0012255.g001#0",
    "PMC1.1/pone.0012255.g002#0",
    "PMC1.1/pone-0012255-g001#0",
    "PMC1.1/pone.0012255.g001#1",
]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Product, Product]:
    """Pairs and corpus of one part whose ids differ behind their dots only; the last is not kept."""
    facts = {
        "pair_id": IDS,
        "text": [f"Figure {n}" for n in range(4)],
        "image": [b"\xff\xd8" + bytes([n]) for n in range(4)],
    }
    facts |= {
        "license": ["CC BY"] * 4,
        "figure_kind": ["chart"] * 4,
        "phash": [2**64 - 1] * 4,
        "mentions": [["x"], [], [], []],
    }
    rows = pa.Table.from_pylist(
        [dict(zip(facts, row, strict=True)) for row in zip(*facts.values(), strict=True)], schema=PAIRS
    )
    judged = pa.table({"pair_id": IDS, "split": ["train"] * 4, "group": range(4), "kept": [True] * 3 + [False]})
    judged = conform(judged.append_column("reason", pa.nulls(4, pa.string())), CORPUS)
    products = []
    for stage, table in (("preprocess", rows), ("curate", judged)):
        product = Product.plan(str(tmp_path / "root"), stage, 1, {}, [])
        with attempt(product, 1) as current:
            current.write_part(0, table, Ledger(stage).table(), {"pair": (4, 4)})
            current.finish_parts(0.0)
        products.append(product)
    return products[0], products[1]


@given(st.lists(st.text(min_size=1, max_size=120), unique=True, max_size=20))
def test_keys_are_unique_and_hold_no_dot_slash_or_colon(ids: list[str]) -> None:
    keys = [sample_key(name) for name in ids]
    assert len(set(keys)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,77}", key) for key in keys)


def test_a_shard_holds_three_files_a_pair_and_the_same_bytes_each_time(
    made: tuple[Product, Product], tmp_path: Path
) -> None:
    places = [Place(str(tmp_path / name)) for name in ("a", "b")]
    shard = Shard("train-000000.tar", "train", (0,), 3)
    for place in places:
        write_shard(shard, place, *made, "webdataset")
    data = [place.read("train-000000.tar") for place in places]
    assert data[0] == data[1]
    with tarfile.open(fileobj=io.BytesIO(data[0])) as tar:
        names = tar.getnames()
    assert names == [f"{sample_key(name)}.{extension}" for name in IDS[:3] for extension in ("jpg", "txt", "json")]
    assert names[0] == "PMC1_1_pone_0012255_g001_0-" + sample_key(IDS[0]).rpartition("-")[2] + ".jpg"


def test_a_parquet_shard_keeps_every_column_and_says_that_its_image_is_one(
    made: tuple[Product, Product], tmp_path: Path
) -> None:
    import datasets

    place = Place(str(tmp_path / "out"))
    write_shard(Shard("data/train-00000-of-00001.parquet", "train", (0,), 3), place, *made, "datasets")
    rows = datasets.Dataset.from_parquet(
        str(tmp_path / "out/data/train-00000-of-00001.parquet"), cache_dir=str(tmp_path / "c")
    )
    assert isinstance(rows.features["image"], datasets.Image)
    assert set(rows.column_names) == {*PAIRS.names, "split", "group"} - {"part", "source_split"}
    assert rows["phash"][:] == [2**64 - 1] * 3
    raw = rows.cast_column("image", datasets.Image(decode=False))
    assert [row["bytes"][-1] for row in raw["image"]] == [0, 1, 2]


def test_datasets_opens_shards_whose_first_pairs_lack_facts(made: tuple[Product, Product], tmp_path: Path) -> None:
    import datasets

    pairs, corpus = made
    rows = pairs.read(0).to_pylist()
    rows[2] |= {"year": 2019, "title": "T", "keywords": ["k"]}
    pairs.place.delete("data/part-00000.parquet")
    Attempt(pairs, "ran", 1).write_part(0, pa.Table.from_pylist(rows, schema=PAIRS), Ledger("preprocess").table(), {})
    place = Place(str(tmp_path / "out"))
    write_shard(Shard("train-000000.tar", "train", (0,), 3), place, pairs, corpus, "webdataset")
    counts = {"split": {"train": 3}, "license": {"CC BY": 3}, "figure_kind": {"chart": 3}, "language": {"en": 3}}
    note = {"form": "webdataset", "splits": ["train"], "counts": counts, "sources": [], "shards": [{"split": "train"}]}
    place.write("README.md", readme(note).encode())
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    raw = loaded.cast_column("jpg", datasets.Image(decode=False))
    assert [row["json"]["year"] for row in raw] == [None, None, 2019]
    assert raw[2]["json"]["keywords"] == ["k"]
    assert raw[0]["json"]["phash"] == "f" * 16
    assert set(raw[0]["json"]) == {*FACTS, "split", "group"}


def test_corpus_rows_of_other_pairs_are_refused(made: tuple[Product, Product], tmp_path: Path) -> None:
    pairs, corpus = made
    corpus.place.delete("data/part-00000.parquet")
    judged = conform(pa.table({name: pa.nulls(1, CORPUS.field(name).type) for name in CORPUS.names}), CORPUS)
    Attempt(corpus, "ran", 1).write_part(0, judged, Ledger("curate").table(), {})
    with pytest.raises(RuntimeError, match="not aligned"):
        write_shard(Shard("x.tar", "train", (0,), 1), Place(str(tmp_path / "out")), pairs, corpus, "webdataset")
