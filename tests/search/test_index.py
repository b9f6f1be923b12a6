"""Search over a table of 4,000 rows: exact and approximate, with and without filters."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from biomedclip_ray.schema import index_schema
from biomedclip_ray.search import build as building
from biomedclip_ray.search import calibrate, folding
from biomedclip_ray.search.filters import Filters
from biomedclip_ray.search.index import Index
from biomedclip_ray.search.table import BadIndexError
from biomedclip_ray.store.place import Place

ROWS, D = 4000, 32
KINDS = ("gel", "chart", "micrograph")


def vectors(seed: int) -> np.ndarray:
    """Clustered, as real embeddings are."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(40, D))
    raw = centres[random.integers(40, size=ROWS)] + 0.5 * random.normal(size=(ROWS, D))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


IMAGE, TEXT = vectors(1), vectors(2)


def rows() -> pa.Table:
    def vector(matrix: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), D)

    n = range(ROWS)
    return pa.table(
        {
            "pair_id": [f"PMC{i}.1/F1#0" for i in n],
            "article_id": [f"PMC{i}.1" for i in n],
            "pmcid": [f"PMC{i}" for i in n],
            "figure_id": [f"PMC{i}.1/F1" for i in n],
            "panel": pa.array([0] * ROWS, pa.int16()),
            "label": ["Fig. 1"] * ROWS,
            "image_vector": vector(IMAGE),
            "text_vector": vector(TEXT),
            "caption": [f"A {KINDS[i % 3]} of sample number{i}" for i in n],
            "words": [folding.document(f"A {KINDS[i % 3]} of sample number{i}", f"PMC{i}.1") for i in n],
            "title": ["O'Brien's title"] * ROWS,
            "journal": ["J"] * ROWS,
            "year": pa.array([2000 + i % 20 for i in n], pa.int32()),
            "license": ["CC BY" if i % 1000 else "it's odd" for i in n],
            "doi": pa.nulls(ROWS, pa.string()),
            "pmid": pa.nulls(ROWS, pa.string()),
            "figure_kind": [KINDS[i % 3] for i in n],
            "split": ["train" if i % 10 else "test" for i in n],
            "thumbnail": [b"\xff\xd8%d" % i for i in n],
            "x": pa.array(np.zeros(ROWS), pa.float32()),
            "y": pa.array(np.zeros(ROWS), pa.float32()),
            "bundle": ["b1"] * ROWS,
        },
        schema=index_schema(D),
    )


def build(folder: Path, ann_rows: int) -> Index:
    place, table, schema = Place(str(folder)), rows(), index_schema(D)
    fragments = [f for start in (0, 1000, 2500) for f in building.write_rows(place, [_slice(table, start)], schema)]
    building.commit(place, fragments, schema, ROWS)
    building.finish(place, ann_rows)
    return Index.open(str(folder))


def _slice(table: pa.Table, start: int) -> pa.Table:
    return table.slice(start, {0: 1000, 1000: 1500, 2500: 1500}[start])


@pytest.fixture(scope="module")
def place_of_exact(tmp_path_factory) -> Place:
    return Place(str(tmp_path_factory.mktemp("exact")))


@pytest.fixture(scope="module")
def exact(place_of_exact) -> Index:
    return build(Path(place_of_exact.uri), ann_rows=ROWS + 1)


@pytest.fixture(scope="module")
def nothing_kept() -> Iterator[None]:
    """Few rows would be searched in memory, and the index not at all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("biomedclip_ray.search.index.KEPT_BYTES", 0)
        yield


@pytest.fixture(scope="module")
def approximate(tmp_path_factory, nothing_kept) -> Index:
    return build(tmp_path_factory.mktemp("approximate"), ann_rows=ROWS)


@pytest.fixture(params=["exact", "approximate"])
def index(request) -> Index:
    return request.getfixturevalue(request.param)


def test_the_table_holds_every_row_of_every_fragment(index):
    assert index.count() == ROWS
    assert index.dimensions == D
    assert index.bundle == "b1"


def test_each_row_finds_itself_first(index):
    for row in range(0, ROWS, 97):
        for column, matrix in (("image_vector", IMAGE), ("text_vector", TEXT)):
            hit = index.search(matrix[row], 1, column)[0]
            assert hit.pair_id == f"PMC{row}.1/F1#0"
            assert hit.score == pytest.approx(1, abs=1e-5)


def test_exact_search_gives_what_numpy_gives(exact):
    query = TEXT[5]
    best = np.argsort(-(IMAGE @ query))[:10]
    hits = exact.search(query, 10)
    assert [hit.pair_id for hit in hits] == [f"PMC{i}.1/F1#0" for i in best]
    np.testing.assert_allclose([hit.score for hit in hits], IMAGE[best] @ query, atol=1e-5)


def test_a_filter_that_one_in_a_thousand_passes_gives_all_that_pass(index):
    filters = Filters(licenses=("it's odd",))
    assert index.count(filters) == 4
    found = {hit.pair_id for hit in index.search(IMAGE[7], 10, filters=filters)}
    assert found == {f"PMC{i}.1/F1#0" for i in (0, 1000, 2000, 3000)}
    assert len(index.search(IMAGE[7], 3, filters=filters)) == 3


def test_filters_hold_for_every_hit_and_combine(index):
    filters = Filters(kinds=("gel", "chart"), splits=("test",), year_from=2003, year_to=2012)
    hits = index.search(IMAGE[0], 20, filters=filters)
    passing = [i for i in range(ROWS) if i % 3 < 2 and i % 10 == 0 and 3 <= i % 20 <= 12]
    assert index.count(filters) == len(passing) > 20
    assert {hit.row["figure_kind"] for hit in hits} <= {"gel", "chart"}
    assert all(hit.row["split"] == "test" and 2003 <= hit.row["year"] <= 2012 for hit in hits)
    assert len(hits) == 20


def test_an_empty_list_of_kinds_lets_nothing_pass(index):
    assert index.search(IMAGE[0], 5, filters=Filters(kinds=())) == []


def test_a_value_of_a_filter_is_never_sql(index):
    assert index.count(Filters(kinds=("gel' OR '1'='1",))) == 0


def test_the_settings_are_stored_with_the_recall_that_they_give(approximate, exact):
    settings = approximate.settings
    assert not settings.exact
    assert min(settings.recall.values()) >= calibrate.WANTED_RECALL
    found = sum(
        len({h.pair_id for h in approximate.search(TEXT[i], 10)} & {h.pair_id for h in exact.search(TEXT[i], 10)})
        for i in range(0, ROWS, 20)
    )
    assert found / 2000 >= 0.93
    assert exact.settings.exact
    assert exact.settings.output_recall["int8"] > 0.95 > exact.settings.output_recall["binary"]


def test_the_neighbours_that_recall_is_measured_by_are_those_of_the_whole_product(exact, place_of_exact):
    fragments = [fragment.fragment_id for fragment in exact.dataset.get_fragments()]
    queries = {"image_vector": IMAGE[:5], "text_vector": TEXT[5:10]}
    filters = [("", 1.0, None), (" years", 0.5, "year < 2010")]
    found = calibrate.true_neighbours(place_of_exact, "image_vector", queries, filters, fragments)
    table = exact.dataset.to_table(columns=["pair_id"], with_row_id=True)
    row_of = dict(zip(table["_rowid"].to_pylist(), table["pair_id"].to_pylist(), strict=True))
    early = np.arange(ROWS) % 20 < 10
    for n, (vectors, mask) in enumerate(
        [(IMAGE[:5], True), (IMAGE[:5], early), (TEXT[5:10], True), (TEXT[5:10], early)]
    ):
        for query, ids in zip(vectors, found[n][1], strict=True):
            best = np.argsort(-np.where(mask, IMAGE @ query, -2))[:10]
            assert {row_of[row] for row in ids.tolist()} == {f"PMC{i}.1/F1#0" for i in best}


def test_words_of_a_caption_find_their_row_and_only_among_those_that_pass(index):
    assert [hit.pair_id for hit in index.text_search("number1234", 5)] == ["PMC1234.1/F1#0"]
    assert index.text_search("number1234", 5, Filters(kinds=("gel",))) == []
    assert {hit.row["figure_kind"] for hit in index.text_search("micrograph", 5)} == {"micrograph"}


@pytest.mark.parametrize(
    "query", ["  ", "?!", '"', "' OR 1=1 --", "gel AND (", "βλ 細胞", "a" * 5000, "field:gel^2~", "\\ *"]
)
def test_any_words_may_be_asked_for(exact, query):
    assert len(exact.text_search(query, 5)) <= 5


def test_a_row_is_got_by_its_id_with_its_thumbnail(index):
    row = index.get("PMC42.1/F1#0")
    assert row["thumbnail"] == b"\xff\xd842"
    assert row["title"] == "O'Brien's title"
    assert index.get("PMC1.1/F'9#0") is None


def test_thumbnails_come_when_asked_for(index):
    assert "thumbnail" not in index.search(IMAGE[3], 1)[0].row
    assert index.search(IMAGE[3], 1, thumbnails=True)[0].row["thumbnail"] == b"\xff\xd83"


@pytest.mark.parametrize(
    ("query", "message"),
    [(np.ones(5), "32 dimensions"), (np.zeros(D), "no direction"), (np.full(D, np.nan), "no direction")],
)
def test_a_query_that_has_no_place_is_refused(exact, query, message):
    with pytest.raises(ValueError, match=message):
        exact.search(query)


def test_a_count_that_differs_from_what_was_expected_is_an_error(tmp_path):
    place, schema = Place(str(tmp_path)), index_schema(D)
    fragments = building.write_rows(place, [rows().slice(0, 10)], schema)
    with pytest.raises(BadIndexError, match="holds 10 rows after its commit, expected 11"):
        building.commit(place, fragments, schema, 11)


def test_no_rows_is_an_error(tmp_path):
    with pytest.raises(BadIndexError, match="no rows"):
        building.commit(Place(str(tmp_path)), [], index_schema(D), 0)


def test_a_folder_without_a_finished_index_is_named(tmp_path):
    with pytest.raises(BadIndexError, match=f"{tmp_path} holds no finished index"):
        Index.open(str(tmp_path))


@pytest.fixture(scope="module", params=["exact", "approximate"])
def equal(request, tmp_path_factory, nothing_kept) -> Index:
    """Every row is there ten times, under ids in no order."""
    ids = np.random.default_rng(5).permutation(3000)
    rows = [
        {
            "pair_id": f"P{i:04}#0",
            "caption": f"gel number{n % 300 % 7}",
            "image_vector": IMAGE[n % 300],
            "text_vector": TEXT[0],
            "x": 0.0,
        }
        for n, i in enumerate(ids)
    ]
    return building.from_rows(str(tmp_path_factory.mktemp("equal")), rows, 10_000 if request.param == "exact" else 1000)


def test_the_first_of_more_hits_are_those_of_fewer_and_equal_ones_come_by_pair_id(equal):
    for find in (
        lambda k: equal.search(IMAGE[3], k),
        lambda k: equal.search(IMAGE[3], k, "text_vector"),  # all rows are equal
        lambda k: equal.text_search("number3", k),
    ):
        most = [(hit.pair_id, hit.score) for hit in find(95)]
        assert len(most) == 95
        assert most == sorted(most, key=lambda hit: (-hit[1], hit[0]))
        for k in (1, 2, 7, 10, 31, 64):
            assert [(hit.pair_id, hit.score) for hit in find(k)] == most[:k]


def test_neighbours_of_a_filter_are_found_wherever_they_lie(tmp_path, monkeypatch, nothing_kept):
    """A tenth of the rows passes, all of them far from the query: where probing stops at k rows, none of the true ten
    is found.
    """
    monkeypatch.setattr(calibrate, "EXACT_ROWS", 10)
    random = np.random.default_rng(7)
    centres = random.normal(size=(100, D))
    cluster = random.integers(100, size=ROWS)
    image = centres[cluster] + 0.3 * random.normal(size=(ROWS, D))
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    x = np.argsort(np.argsort(centres @ centres[0]))[cluster] / 100  # the rows of a cluster lie together on the map
    index = building.from_rows(
        str(tmp_path),
        [
            {
                "pair_id": f"P{n:05}#0",
                "image_vector": image[n],
                "text_vector": image[n],
                "x": x[n],
                "caption": "",
                "figure_kind": "gel" if x[n] < 0.1 else "chart",
            }
            for n in range(ROWS)
        ],
        ann_rows=1000,
    )
    assert min(index.settings.recall.values()) >= calibrate.WANTED_RECALL
    assert {name.partition(",")[2] for name in index.settings.recall} >= {" 10.0% by map@10", " 10.0% by id@10"}
    passing = np.flatnonzero(x < 0.1)
    found = 0
    for query in image[cluster == 0][:20].astype(np.float32):
        best = passing[np.argsort(-(image[passing] @ query))[:10]]
        hits = index.search(query, 10, filters=Filters(kinds=("gel",)))
        found += len({hit.pair_id for hit in hits} & {f"P{n:05}#0" for n in best})
    assert found / 200 >= 0.95
