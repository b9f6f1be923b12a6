"""Vectors of filtered rows, held in memory."""

import shutil

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


def test_the_vectors_of_what_was_asked_longest_ago_go_when_too_many_are_held(index, monkeypatch):
    held = kept.Kept(index.dataset)
    monkeypatch.setattr(kept, "KEPT_BYTES", 2 * ROWS // 6 * D * 4)
    for kind in ("kind0", "kind1", "kind0", "kind2"):
        held.nearest(VECTORS[0], 3, "image_vector", f"figure_kind = '{kind}'")
    assert [where for _, where in held._held] == ["figure_kind = 'kind0'", "figure_kind = 'kind2'"]
