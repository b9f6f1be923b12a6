"""The rows that are trained on: aligned with storage, and whom each is no negative of."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from biomedclip_ray.schema import CORPUS, LEDGER, PAIRS
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.parquet import conform
from biomedclip_ray.store.product import Product
from biomedclip_ray.train.rows import find_rows, texts


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return tiny.products(tmp_path_factory.mktemp("rows"))


def test_only_kept_rows_of_the_split_are_found(two):
    pairs, corpus = two
    rows = find_rows(pairs, corpus, "train")
    assert len(rows) == 18 * 4  # three quarters of 24 articles, four of their five figures
    assert rows.chunk_rows.sum() == len(rows)
    assert len(np.unique(rows.article)) == 18
    assert len(find_rows(pairs, corpus, "validation")) == 3 * 4


def test_a_kind_with_a_weight_comes_that_often_and_is_no_negative_of_its_copies(two):
    pairs, corpus = two
    plain = find_rows(pairs, corpus, "train")
    doubled = find_rows(pairs, corpus, "train", {tiny.KIND: 2.5})
    place = np.stack([np.repeat(np.arange(len(doubled.part)), doubled.chunk_rows), doubled.row])
    _, times = np.unique(place, axis=1, return_counts=True)
    kinds = np.array([tiny.is_of_kind(number) for number in _numbers(pairs, corpus)])
    assert set(times[~kinds]) == {1} and set(times[kinds]) == {2, 3}
    assert doubled.pairs == plain.pairs == len(plain) < len(doubled)
    again = np.flatnonzero(np.diff(doubled.row) == 0)
    assert len(again) >= kinds.sum() and (doubled.group[again] == doubled.group[again + 1]).all()


def _numbers(pairs: Product, corpus: Product) -> list[int]:
    """The article number of each kept training pair, in storage order."""
    return [int(text.split("field ")[1].split()[0]) for text in texts(pairs, corpus, "train")]


def test_each_row_is_where_the_arrays_say(two):
    pairs, corpus = two
    rows = find_rows(pairs, corpus, "train")
    told = list(texts(pairs, corpus, "train"))
    chunk = np.repeat(np.arange(len(rows.part)), rows.chunk_rows)
    for row in (0, 17, len(rows) - 1):
        assert rows.row_group[chunk[row]] == 0
        table = pairs.read(int(rows.part[chunk[row]]), ["text"])
        assert table["text"][int(rows.row[row])].as_py() == told[row]


def _corpus(root: Path, ids: list[str], groups: list[int | None]) -> tuple[Product, Product]:
    pairs, corpus = Product.plan(str(root), "preprocess", 1, {}, []), Product.plan(str(root), "curate", 1, {}, [])
    marks = [
        {"pair_id": i, "split": "train", "group": g, "kept": True, "reason": None}
        for i, g in zip(ids, groups, strict=True)
    ]
    for product, schema, rows in ((pairs, PAIRS, [{"pair_id": i} for i in ids]), (corpus, CORPUS, marks)):
        with attempt(product, 1) as current:
            table = conform(pa.Table.from_pylist(rows, schema=schema), schema)
            current.write_part(0, table, LEDGER.empty_table(), {"pair": (len(ids), len(ids))})
            current.finish_parts(0.0)
    return pairs, corpus


def test_pairs_of_one_picture_or_one_figure_are_no_negatives(tmp_path):
    ids = ["PMC1.1/F1#0", "PMC1.1/F1#1", "PMC1.1/F2/a#0", "PMC1.1/F2/b#0", "PMC2.1/F1#0", "PMC3.1/F1#0"]
    rows = find_rows(*_corpus(tmp_path, ids, [10, 11, 12, 13, 13, None]), "train")
    first, panel, a, b, same_picture, alone = rows.group
    assert first == panel
    assert a == b == same_picture
    assert len({first, a, alone}) == 3
    assert rows.article.tolist() == [0, 0, 0, 0, 1, 2]


def test_an_empty_split_is_an_error_that_names_the_fix(tmp_path):
    two = _corpus(tmp_path, ["PMC1.1/F1#0"], [1])
    with pytest.raises(ValueError, match=r"no pair of the split 'validation'.*curate\.splits"):
        find_rows(*two, "validation")


def test_products_that_are_not_aligned_are_refused(tmp_path):
    pairs, _ = _corpus(tmp_path / "a", ["PMC1.1/F1#0"], [1])
    _, corpus = _corpus(tmp_path / "b", ["PMC1.1/F1#0", "PMC1.1/F2#0"], [1, 2])
    with pytest.raises(ValueError, match="must be aligned"):
        find_rows(pairs, corpus, "train")
