"""Questions of several parts over 600 rows: fused, without, like, grouped, counted, page after page."""

import numpy as np
import pytest

from biomedclip_ray.search import build
from biomedclip_ray.search.filters import Filters
from biomedclip_ray.search.index import Index
from biomedclip_ray.search.query import FUSED_DEPTH, Like, Page, Query, Vector, Words, facets, find

D, ARTICLES = 16, 100
KINDS = ("gel", "chart", "micrograph")
random = np.random.default_rng(3)
IMAGE = random.normal(size=(6 * ARTICLES, D)).astype(np.float32)
IMAGE /= np.linalg.norm(IMAGE, axis=1, keepdims=True)
TEXT = random.normal(size=IMAGE.shape).astype(np.float32)
TEXT /= np.linalg.norm(TEXT, axis=1, keepdims=True)
IDS = [f"PMC{n // 6}.1/F{n % 6 // 2}#{n % 2}" for n in range(6 * ARTICLES)]


def rows() -> list[dict]:
    return [
        {
            "pair_id": IDS[n],
            "article_id": f"PMC{n // 6}.1",
            "caption": f"A {KINDS[n % 3]} of IL-{n % 7} in {'mice' if n % 5 else 'rats'}.",
            "figure_kind": KINDS[n % 3],
            "license": "CC BY" if n % 4 else None,
            "year": 2000 + n // 6 % 10,
            "journal": f"J{n // 60}",
            "split": "train",
            "image_vector": IMAGE[n],
            "text_vector": TEXT[n],
        }
        for n in range(6 * ARTICLES)
    ]


@pytest.fixture(scope="module", params=["exact", "approximate"])
def index(request, tmp_path_factory) -> Index:
    folder = tmp_path_factory.mktemp(request.param)
    return build.from_rows(str(folder), rows(), 100_000 if request.param == "exact" else 300)


def ids(page: Page) -> list[str]:
    return [result.hit.pair_id for result in page.results]


def read_on(index: Index, query: Query, k: int) -> list[str]:
    cursor, found = None, []
    while True:
        page = find(index, query, k, cursor)
        found += ids(page)
        cursor = page.cursor
        if cursor is None:
            return found


def best(scores: np.ndarray, n: int) -> list[str]:
    return [IDS[i] for i in np.argsort(-scores, kind="stable")[:n]]


def test_one_vector_is_the_search_of_the_index(index):
    page = find(index, Query((Vector(IMAGE[7]),)), 10)
    assert ids(page) == best(IMAGE @ IMAGE[7], 10)
    assert page.results[0].hit.score == pytest.approx(1, abs=1e-5)


def test_vectors_are_summed_by_their_weights_less_what_is_not_wanted(index):
    query = Query((Vector(3 * IMAGE[1], weight=2), Vector(IMAGE[2])), without=(Vector(IMAGE[3], weight=0.5),))
    wanted = 2 * IMAGE[1] + IMAGE[2] - 0.5 * IMAGE[3]
    assert ids(find(index, query, 10)) == best(IMAGE @ wanted, 10)


def test_words_and_vectors_are_fused_by_reciprocal_rank(index):
    query = Query((Vector(IMAGE[9], weight=2), Vector(TEXT[30], "text_vector"), Words("rats", weight=3)))
    by_words = find(index, Query((Words("rats"),)), 600)
    lists = [(2, best(IMAGE @ IMAGE[9], 600)), (1, best(TEXT @ TEXT[30], 600)), (3, ids(by_words))]
    score = dict.fromkeys(IDS, 0.0)
    for weight, ranked in lists:
        for rank, name in enumerate(ranked[:FUSED_DEPTH], 1):
            score[name] += weight / (60 + rank)
    expected = sorted(IDS, key=lambda name: (-score[name], name))
    page = find(index, query, 10)
    assert ids(page) == expected[:10]
    assert page.results[0].hit.score == pytest.approx(score[expected[0]], rel=1e-5)


def test_but_not_keeps_the_words_out_of_every_list(index):
    for asked in ((Words("gel"),), (Vector(IMAGE[0]),), (Words("gel"), Vector(IMAGE[0]))):
        page = find(index, Query(asked, without=(Words("IL6"), Words('"in rats"'))), 300)
        captions = [result.hit.row["caption"] for result in page.results]
        assert len(captions) > 100
        assert not any("IL-6" in caption or "rats" in caption for caption in captions)


def test_like_a_figure_is_its_vector_without_itself(index):
    page = find(index, Query((Like(IDS[20]),)), 10)
    assert ids(page) == best(IMAGE @ IMAGE[20], 11)[1:]
    with pytest.raises(ValueError, match="the index has no 'PMC7'"):
        find(index, Query((Like("PMC7"),)))


@pytest.mark.parametrize(
    ("query", "hits"),
    [
        (Query((Vector(IMAGE[7]),)), 600),
        (Query((Vector(IMAGE[7]),), filters=Filters(kinds=["gel"])), 200),
        (Query((Like(IDS[7]),)), 599),
        (Query((Words("chart"),)), 200),
        (Query((Words("chart"), Vector(TEXT[5], "text_vector"))), 600),
        (Query((Words("chart"), Vector(IMAGE[5])), without=(Words("rats"),)), 480),
        (Query((Words("nothing of the kind"),)), 0),
        (Query((Vector(IMAGE[7]),), group="article"), 100),
        (Query((Words("IL3"),), group="article"), None),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, str) else None,
)
def test_pages_hold_every_hit_once_whatever_their_size(index, query, hits):
    whole = read_on(index, query, 600)
    assert len(set(whole)) == len(whole)
    assert hits is None or len(whole) == hits
    assert read_on(index, query, 97) == whole


def test_lists_that_are_longer_than_what_is_fused_go_on_to_the_last_hit(index, monkeypatch):
    from biomedclip_ray.search import query as module

    monkeypatch.setattr(module, "FUSED_DEPTH", 50)
    asked = Query((Vector(IMAGE[5]), Words("rats")), without=(Words("IL6"),))
    found = read_on(index, asked, 31)
    assert len(found) == len(set(found)) == sum(n % 7 != 6 for n in range(600))


def test_a_group_is_an_article_with_its_best_hit_and_its_next_ones(index):
    page = find(index, Query((Vector(IMAGE[7]),), group="article"), 5)
    scores = IMAGE @ IMAGE[7]
    assert page.results[0].hit.pair_id == IDS[7]
    for result in page.results:
        article = int(result.hit.row["article_id"][3:-2])
        own = sorted(range(6 * article, 6 * article + 6), key=lambda n: -scores[n])
        assert [result.hit.pair_id, *(hit.pair_id for hit in result.more)] == [IDS[n] for n in own]


def test_facets_count_what_passes_the_other_fields(index):
    counts = facets(index, Query((Vector(IMAGE[0]),), filters=Filters(kinds=["gel"], year_from=2005)))
    late = [n for n in range(600) if n // 6 % 10 >= 5]
    assert counts["kinds"] == {kind: sum(n % 3 == i for n in late) for i, kind in enumerate(KINDS)}
    assert counts["licenses"] == {"CC BY": sum(n % 4 > 0 and n % 3 == 0 for n in late)}
    assert counts["years"] == {2000 + y: 20 for y in range(10)}


def test_facets_of_words_count_the_captions_that_match(index):
    counts = facets(index, Query((Words("IL6 rats"),), without=(Words("gel"),)))
    matching = [n for n in range(600) if n % 7 == 6 and n % 5 == 0 and n % 3]
    assert counts["kinds"] == {kind: sum(n % 3 == i for n in matching) for i, kind in enumerate(KINDS) if i}


def test_highlights_are_where_the_words_stand(index):
    result = find(index, Query((Words("IL3 mouse"),)), 1).results[0]
    caption = result.hit.row["caption"]
    assert [caption[start:end] for start, end in result.highlights] == ["IL-3", "mice"]


@pytest.mark.parametrize("cursor", ["", "x", "MTAuYWJj", "é", "1" * 200, "=" * 7])
def test_a_cursor_of_another_query_is_a_value_error(index, cursor):
    mine = find(index, Query((Words("gel"),)), 3).cursor
    for query, given in ((Query((Words("gel"),)), cursor), (Query((Words("gels"),)), mine)):
        with pytest.raises(ValueError, match="the cursor belongs to another query"):
            find(index, query, 3, given)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query(()), "nothing is asked for"),
        (Query((Vector(np.zeros(D)),)), "no direction"),
        (Query((Vector(IMAGE[0]),), without=(Vector(IMAGE[0]),)), "no direction"),
        (Query((Vector(np.ones(3)),)), "16 dimensions"),
        (Query((Vector(IMAGE[0], weight=0.0),)), "positive number"),
        (Query((Vector(IMAGE[0], weight=float("nan")),)), "positive number"),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, str) else None,
)
def test_what_cannot_be_asked_is_a_value_error(index, query, message):
    with pytest.raises(ValueError, match=message):
        find(index, query)
