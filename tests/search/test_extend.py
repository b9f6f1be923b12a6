"""An index that grows and shrinks without being built anew."""

import numpy as np
import pyarrow as pa
import pytest

from biomedclip_ray.schema import index_schema
from biomedclip_ray.search import build, calibrate, folding
from biomedclip_ray.search.index import Index
from biomedclip_ray.search.table import Settings
from biomedclip_ray.store.place import Place

D, ROWS = 32, 3000
random = np.random.default_rng(11)
VECTORS = random.normal(size=(40, D))[random.integers(40, size=ROWS + 1000)] + 0.4 * random.normal(
    size=(ROWS + 1000, D)
)
VECTORS = (VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)).astype(np.float32)


def row(n: int) -> dict:
    return {
        "pair_id": f"PMC{n}.1/F1#0",
        "image_vector": VECTORS[n],
        "text_vector": VECTORS[n],
        "caption": f"a gel number{n}",
        "words": folding.document(f"a gel number{n}"),
        "x": float(VECTORS[n, 0]),
    }


def tables(numbers: range) -> list[pa.Table]:
    return [pa.Table.from_pylist([row(n) for n in numbers], schema=index_schema(D))]


def extend(place: Place, numbers: range, withdrawn: list[str]) -> Settings:
    written = build.write_rows(place, tables(numbers), index_schema(D), mode="append")
    return build.extend(place, written, withdrawn, 1000)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    monkeypatch.setattr(calibrate, "_GROUP_ROWS", 1000)  # three segments, merged
    place, schema = Place(str(tmp_path)), index_schema(D)
    fragments = [
        f for at in range(0, ROWS, 1000) for f in build.write_rows(place, tables(range(at, at + 1000)), schema)
    ]
    build.commit(place, fragments, schema, ROWS)
    build.finish(place, 1000)
    return place


def neighbours_found(index: Index, there: np.ndarray) -> float:
    found = 0
    for query in VECTORS[there[::100]]:
        best = there[np.argsort(-(VECTORS[there] @ query))[:10]]
        hits = index.search(query, 10)
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        found += len({hit.pair_id for hit in hits} & {f"PMC{n}.1/F1#0" for n in best})
    return found / len(there[::100]) / 10


def test_an_extended_index_keeps_its_partitions_and_its_recall(place):
    partitions = calibrate.num_partitions(Index.open(place.uri).dataset, "image_vector")
    assert partitions > 30
    there = list(range(ROWS))
    for at in (ROWS, ROWS + 200):
        gone = there[:150]
        there = there[150:] + list(range(at, at + 200))
        extend(place, range(at, at + 200), [f"PMC{n}.1/F1#0" for n in gone])
        index = Index.open(place.uri)
        assert index.count() == len(there)
        assert calibrate.num_partitions(index.dataset, "image_vector") == partitions
        assert index.dataset.stats.index_stats("image_vector_idx")["num_unindexed_rows"] == 0
        assert min(index.settings.recall.values()) >= calibrate.WANTED_RECALL
        assert neighbours_found(index, np.array(there)) >= 0.95
        assert [hit.pair_id for hit in index.text_search(f"number{at + 7}")] == [f"PMC{at + 7}.1/F1#0"]
        assert index.text_search(f"number{gone[0]}") == []


def test_old_and_new_captions_are_scored_by_one_corpus(place):
    extend(place, range(ROWS, ROWS + 100), [])
    scores = {hit.score for hit in Index.open(place.uri).text_search("gel", 3100)}
    assert len(scores) == 1


def test_more_new_rows_than_the_stated_share_build_it_anew(place):
    extend(place, range(ROWS, ROWS + 1000), [])
    index = Index.open(place.uri)
    assert calibrate.num_partitions(index.dataset, "image_vector") > 55
    assert neighbours_found(index, np.arange(ROWS + 1000)) >= 0.95


def test_a_table_that_grew_beyond_the_exact_ones_gets_its_vector_indices(tmp_path):
    build.from_rows(str(tmp_path), [row(n) for n in range(900)], 1000)
    settings = extend(Place(str(tmp_path)), range(900, 1050), [])
    assert settings.kind == "IVF_RQ"
    assert Index.open(str(tmp_path)).search(VECTORS[1049], 1)[0].pair_id == "PMC1049.1/F1#0"
