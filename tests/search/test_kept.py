"""Vectors of filtered rows, held in memory."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from biomedclip_ray.search import build, kept
from biomedclip_ray.search.filters import Filters
from biomedclip_ray.search.index import Index

ROWS, D = 600, 16
random = np.random.default_rng(3)
VECTORS = random.normal(size=(ROWS, D)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
KINDS = [f"kind{n % 6}" for n in range(ROWS)]


@pytest.fixture
def index(tmp_path) -> Index:
    rows = [
        {"pair_id": f"P{n:03}#0", "figure_kind": KINDS[n], "image_vector": VECTORS[n], "text_vector": VECTORS[-n]}
        for n in range(ROWS)
    ]
    return build.from_rows(str(tmp_path / "index"), rows)


def best(query: np.ndarray, kind: str, k: int) -> list[str]:
    scores = np.where(np.array(KINDS) == kind, VECTORS @ query, -2)
    return [f"P{n:03}#0" for n in np.argsort(-scores)[:k]]


def test_a_filter_is_read_once_and_answers_every_query_exactly(index, tmp_path):
    passing = Filters(kinds=("kind2",))
    assert len(index.nearest(VECTORS[0], 10, filters=passing).ids) == 10
    rows = index.dataset.to_table(columns=["pair_id"], with_row_id=True)
    name_of = dict(zip(rows["_rowid"].to_pylist(), rows["pair_id"].to_pylist(), strict=True))
    shutil.rmtree(tmp_path / "index" / "index.lance" / "data")
    for query in VECTORS[:20]:
        found = index.nearest(query, 10, filters=passing)
        assert [name_of[row] for row in found.ids.tolist()] == best(query, "kind2", 10)
        assert found.scores == pytest.approx(np.sort(-VECTORS[2::6] @ query)[:10] * -1, abs=1e-6)
    with pytest.raises(pa.ArrowInvalid, match="Not found"):
        index.nearest(VECTORS[0], 10, filters=Filters(kinds=("kind3",)))


def asked(held: kept.Kept, kinds: str) -> None:
    for kind in kinds:
        held.of("image_vector", f"figure_kind = 'kind{kind}'", ROWS // 6)


def kinds_of(held: kept.Kept) -> str:
    return "".join((where or "")[-2] for _, where in held._held)


@pytest.mark.parametrize(
    ("questions", "left"),
    [
        ("01021", "021"),  # there is room for three
        ("0123", "012"),  # the fourth is asked no more often than those that are there
        ("01233", "123"),
        ("0001122333", "023"),
        ("0001122345345345", "034"),
    ],
)
def test_where_there_is_no_room_a_filter_that_is_asked_more_often_takes_that_of_another(
    index, monkeypatch, questions, left
):
    monkeypatch.setattr(kept, "ALL_BYTES", 3 * ROWS // 6 * D * 4)
    held = kept.Kept(index.dataset)
    asked(held, questions)
    assert sorted(kinds_of(held)) == sorted(left)


def test_what_was_asked_long_ago_counts_less(index, monkeypatch):
    monkeypatch.setattr(kept, "ALL_BYTES", ROWS // 6 * D * 4)
    monkeypatch.setattr(kept, "_HALVED", 5)
    held = kept.Kept(index.dataset)
    asked(held, "0" * 40 + "1" * 25)
    assert kinds_of(held) == "1"


def test_a_filter_whose_vectors_take_more_than_one_may_is_searched_by_the_index(tmp_path, monkeypatch):
    rows = [
        {"pair_id": f"P{n:03}#0", "figure_kind": KINDS[n], "image_vector": VECTORS[n], "text_vector": VECTORS[n]}
        for n in range(ROWS)
    ]
    folder, passing = str(tmp_path / "ivf"), Filters(kinds=("kind2",))
    build.from_rows(folder, rows, ann_rows=ROWS)
    for room, held in ((ROWS // 6 * D * 4, 1), (ROWS // 6 * D * 4 - 1, 0)):
        monkeypatch.setattr("biomedclip_ray.search.index.KEPT_BYTES", room)
        index = Index.open(folder)
        index = Index(index.dataset, replace(index.settings, exact_rows=10), index.place)
        for filters in (passing, Filters()):
            assert len(index.nearest(VECTORS[0], 10, filters=filters).ids) == 10
        assert len(index._kept._held) == held
