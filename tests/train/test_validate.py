"""Recall that chooses the checkpoint: ties at their expected rank, and exactly as many pairs as were asked for."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from biomedclip_ray.store.place import Place
from biomedclip_ray.train.validate import PAIRS, copy_pairs, recall_at


def test_recall_counts_own_rows_among_the_nearest():
    pool = np.eye(20, dtype=np.float32)
    assert recall_at(1, pool, pool) == 1
    assert recall_at(1, np.roll(pool, 1, axis=0), pool) == 0


def test_ties_count_at_their_expected_rank():
    same = np.ones((20, 4), np.float32) / 2
    assert recall_at(10, same, same) == pytest.approx(0.5)
    assert recall_at(10, same[:5], same[:5]) == 1


@pytest.mark.parametrize(("asked", "got"), [(7, 7), (1000, 12)])
def test_as_many_validation_pairs_as_asked_for_are_copied_and_no_other(tmp_path, asked, got):
    pairs, corpus = tiny.products(tmp_path)
    place = Place(str(tmp_path / "train"))
    assert copy_pairs(pairs, corpus, asked, place) == got
    table = pq.read_table(io.BytesIO(place.read(PAIRS)))
    articles = {int(name.removeprefix("PMC").split(".")[0]) for name in table["pair_id"].to_pylist()}
    assert table.num_rows == got and articles <= {7, 15, 23}  # every eighth article, counted from 1
