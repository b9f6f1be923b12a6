"""A later inventory extends an approximate index, by the stage on Ray; one with too much that is new builds it anew."""

import io

import numpy as np
import pytest
from PIL import Image

from biomedclip_ray.run.parts import on_ray
from biomedclip_ray.search.calibrate import WANTED_RECALL, num_partitions
from biomedclip_ray.search.index import Index
from biomedclip_ray.store.product import Product
from tests.search.test_embed_sync import Root, folder, row

__all__ = ["folder"]
pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]

ROWS, LATER, MUCH_LATER, WITHDRAWN = 1000, 1100, 1400, 60
"""Pairs of three inventories, and how many of the first are gone in the second."""


def drawn(n: int) -> dict:
    """Pair `n`, whose image is sixteen fields of colours: a model at random weights tells such apart."""
    sink = io.BytesIO()
    fields = np.random.default_rng(n).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(fields).resize((64, 64), Image.Resampling.NEAREST).save(sink, "JPEG")
    return row(n, image=sink.getvalue())


@pytest.fixture(scope="module")
def three(folder, tmp_path_factory) -> list[Product]:
    """The embeddings of three inventories, each with the one before as parent."""
    root = Root(str(tmp_path_factory.mktemp("root")), on_ray, batch=100, ann_rows=500)
    every = {n: drawn(n) for n in range(MUCH_LATER)}
    made: list[Product] = []
    pairs = None
    for note, first, end in (("one", 0, ROWS), ("two", WITHDRAWN, LATER), ("three", WITHDRAWN, MUCH_LATER)):
        rows = {n: every[n] for n in range(first, end)}
        pairs = root.pairs(rows, note, pairs)
        made.append(root.embed(rows, root.bundle(folder, note), pairs))
    return made


def partitions(product: Product) -> int:
    return num_partitions(Index.open(product.uri).dataset, "image_vector")


def neighbours_found(index: Index) -> float:
    """Share of the true ten nearest of every twentieth row."""
    table = index.dataset.to_table(columns=["image_vector"], with_row_id=True)
    ids, vectors = table["_rowid"].to_numpy(), np.array(table["image_vector"].to_pylist(), np.float32)
    index._kept_rows = 0  # else a table so small is searched exactly
    found = 0
    for query in vectors[::20]:
        best = ids[np.argsort(-(vectors @ query))[:10]]
        found += len(np.intersect1d(index.nearest(query, 10).ids, best))
    return found / len(vectors[::20]) / 10


def test_the_partitions_stay_and_recall_is_measured_again_and_holds(three):
    first, second, _ = three
    assert second.manifest["parent"]["fingerprint"] == first.fingerprint
    assert second.manifest["parent"]["reused_rows"] == ROWS - WITHDRAWN
    assert second.manifest["index"]["kind"] == "IVF_RQ" and second.manifest["index"]["rows"] == LATER - WITHDRAWN
    assert partitions(second) == partitions(first) > 25
    for column in ("image_vector", "text_vector", "words"):
        assert Index.open(second.uri).dataset.stats.index_stats(f"{column}_idx")["num_unindexed_rows"] == 0
    told = [product.manifest["index"]["recall"] for product in (first, second)]
    assert told[0] != told[1] and min(told[1].values()) >= WANTED_RECALL
    assert neighbours_found(Index.open(second.uri)) >= WANTED_RECALL - 0.03


def test_it_finds_what_came_and_nothing_that_left(three):
    index = Index.open(three[1].uri)
    names = [row["pair_id"] for row in index.dataset.to_table(columns=["pair_id"]).to_pylist()]
    assert sorted(names) == sorted(f"PMC{n}.1/F1#0" for n in range(WITHDRAWN, LATER))
    assert [hit.pair_id for hit in index.text_search(f"number{LATER - 1}")] == [f"PMC{LATER - 1}.1/F1#0"]
    assert index.text_search("number7") == []
    assert three[1].manifest["index"]["deleted"] == sorted(f"PMC{n}.1/F1#0" for n in range(WITHDRAWN))


def test_more_than_the_stated_share_of_new_rows_trains_the_centroids_anew(three):
    _, second, third = three
    assert third.manifest["parent"]["fingerprint"] == second.fingerprint
    assert third.manifest["parent"]["reused_rows"] == LATER - WITHDRAWN
    assert partitions(third) > partitions(second)
    assert neighbours_found(Index.open(third.uri)) >= WANTED_RECALL - 0.03
