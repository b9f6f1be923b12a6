"""Ranks against the whole score matrix in float64, on data that trip float32; figures, chance and control against
theory.
"""

import time
from math import comb

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from biomedclip_ray.evaluate import retrieval, tiles, tiles_gpu
from biomedclip_ray.evaluate.ranks import DIRECTIONS, TIE, Keys, Ranks, _thresholds, rank


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def own(n: int) -> Keys:
    return Keys(np.arange(n), np.arange(n))


def brute_force(text: np.ndarray, image: np.ndarray, keys: Keys) -> dict[str, tuple[np.ndarray, ...]]:
    """above, tied and right of both directions, by the definition."""
    scores = text.astype(np.float64) @ image.astype(np.float64).T
    right = keys.text[:, None] == keys.image
    out = {}
    for direction, table, good in zip(DIRECTIONS, (scores, scores.T), (right, right.T), strict=True):
        best = np.where(good, table, -9).max(axis=1)[:, None]
        same = np.abs(table - best) <= TIE
        out[direction] = ((table > best + TIE).sum(1), (same & ~good).sum(1), (same & good).sum(1))
    return out


def check(text: np.ndarray, image: np.ndarray, readings: dict[str, Keys], tile: int) -> None:
    found = rank(text, image, readings, tile)
    for name, keys in readings.items():
        for direction, expected in brute_force(text, image, keys).items():
            got = found[name][direction]
            for mine, theirs in zip((got.above, got.tied, got.right), expected, strict=True):
                np.testing.assert_array_equal(mine, theirs, f"{name} {direction}")


random = np.random.default_rng(0)
DATA = {
    "random": (random.normal(size=(300, 48)), random.normal(size=(300, 48))),
    "quantised": (random.integers(1, 6, (300, 4)), random.integers(1, 6, (300, 4))),
    "duplicated": (np.repeat(random.normal(size=(100, 48)), 3, 0), np.repeat(random.normal(size=(100, 48)), 3, 0)),
    "a narrow cone": (1 + 1e-4 * random.normal(size=(300, 48)), 1 + 1e-4 * random.normal(size=(300, 48))),
    "collapsed": (np.ones((300, 48)), np.ones((300, 48))),
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("tile", [77, 1000])
def test_ranks_are_those_of_the_float64_product(data, tile):
    text, image = map(unit, DATA[data])
    groups, texts = np.arange(300) // 3, np.random.default_rng(1).integers(0, 200, 300)
    readings = {"strict": own(300), "same_image": Keys(groups, groups), "same_text": Keys(texts, texts)}
    check(text, image, readings, tile)


def test_pieces_smaller_than_a_tile_change_nothing(monkeypatch):
    for name, value in (("_ROWS", 32), ("_COLUMNS", 50), ("_COUNTED", 7)):
        monkeypatch.setattr(tiles, name, value)
    for text, image in DATA.values():
        check(unit(text), unit(image), {"strict": own(300), "thirds": Keys(*(np.arange(300) // 3,) * 2)}, 120)


@pytest.mark.parametrize("data", DATA)
def test_torch_counts_a_tile_as_numpy_does(data, monkeypatch):
    for name, value in (("_STRIP", 70), ("_PAIRS", 50), ("_DENSE_ROWS", 33)):
        monkeypatch.setattr(tiles_gpu, name, value)
    text, image = map(unit, DATA[data])
    thirds = Keys(*(np.arange(300) // 3,) * 2)
    bests = [tiles.best_in_tile(text, image, keys) for keys in (own(300), thirds)]
    sides = tuple(_thresholds([best[side] for best in bests])[0] for side in (0, 1))
    assert data in ("collapsed", "duplicated") or len(sides[0].row) > 300
    expected = tiles.count_tile(text, image, sides)
    for dense in (tiles_gpu._DENSE, 2.0):
        monkeypatch.setattr(tiles_gpu, "_DENSE", dense)
        found = tiles_gpu.count_tile_on("cpu", text, image, sides)
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mine.above, theirs.above)
            np.testing.assert_array_equal(mine.tied, theirs.tied)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_few_whole_numbers_give_many_ties_and_the_same_ranks(data):
    n, m = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    vectors = [data.draw(hnp.arrays(np.int64, (k, 3), elements=st.integers(1, 4))) for k in (n, m)]
    keys = Keys(np.arange(n) % m, np.arange(m))
    if n < m:
        keys = Keys(np.arange(n), np.arange(m) % n)
    check(unit(vectors[0]), unit(vectors[1]), {"strict": keys}, data.draw(st.integers(1, 15)))


def test_an_image_with_several_captions_is_found_by_any_of_them():
    """CLIP_benchmark's definition: text to image by the caption's own image, image to text by any of its captions."""
    image = unit(random.normal(size=(40, 16)))
    belongs = np.repeat(np.arange(40), 5)
    text = unit(image[belongs] + random.normal(size=(200, 16)))
    scores = text.astype(float) @ image.T.astype(float)
    found = rank(text, image, {"strict": Keys(belongs, np.arange(40))})["strict"]
    top = np.argsort(-scores, axis=1)[:, :5]
    np.testing.assert_array_equal(found["text_to_image"].hits(5), (top == belongs[:, None]).any(axis=1))
    back = belongs[np.argsort(-scores.T, axis=1)[:, :5]]
    np.testing.assert_array_equal(found["image_to_text"].hits(5), (back == np.arange(40)[:, None]).any(axis=1))


def test_nothing_that_belongs_to_a_row_is_an_error_that_names_it():
    text = unit(random.normal(size=(3, 4)))
    with pytest.raises(ValueError, match="strict: nothing belongs to 1 of the texts; the first is row 2"):
        rank(text, text, {"strict": Keys(np.array([0, 1, 7]), np.array([0, 1, 1]))})


@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 5))
def test_expected_rank_and_reciprocal_are_sums_over_the_hits(above, tied, right):
    ranks = Ranks(np.array([above]), np.array([tied]), np.array([right]))
    reached = [ranks.hits(k)[0] for k in range(above + tied + right + 1)]
    assert ranks.expected()[0] == pytest.approx(sum(1 - hit for hit in reached))
    steps = zip(range(1, len(reached)), np.diff(reached), strict=True)
    assert ranks.reciprocal()[0] == pytest.approx(sum(step / k for k, step in steps))
    for k in range(1, above + tied + right + 1):
        places = min(max(k - above, 0), tied + right)
        assert reached[k] == pytest.approx(1 - comb(tied, places) / comb(tied + right, places))


def test_the_chance_of_groups_in_a_large_pool_takes_no_time():
    """Each row's is a sum over the pool: rows that are alike share it."""
    blind = Ranks(np.zeros(200_000, np.int64), np.full(200_000, 199_998), np.full(200_000, 2))
    started = time.process_time()
    found = blind.reciprocal()
    assert time.process_time() - started < 5
    n = np.arange(1, 200_000)
    expected = ((200_000 - n) / n).sum() * 2 / (200_000 * 199_999)  # the first of two among n places at random
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def measured(text, image, groups=None, texts=None, articles=None):
    n = len(text)
    keys = retrieval.readings(np.arange(n) if groups is None else groups, np.arange(n) if texts is None else texts)
    ids = {way: [str(i) for i in range(n)] for way in DIRECTIONS}
    articles = {way: range(n) if articles is None else articles for way in DIRECTIONS}
    return retrieval.measure_rows(retrieval.rows_of(ids, articles, rank(text, image, keys)), keys, 100, 0)


def test_a_collapsed_model_gets_exactly_the_chance_level():
    same = unit(np.ones((40, 8)))
    for direction in DIRECTIONS:
        found = measured(same, same)[direction]
        for name, figure in found.items():
            assert figure["value"] == pytest.approx(figure["chance"]), name
        assert found["recall@10"]["value"] == pytest.approx(0.25)
        assert found["recall@10"]["low"] < 0.25 < found["recall@10"]["high"]
        assert found["median_rank"]["value"] == 20.5


def test_the_readings_count_copies_and_equal_texts_as_right():
    text, image = unit([[1, 0], [0.7, 0.3], [0, 1]]), unit([[0.8, 0.2], [1, 0], [0, 1]])
    found = measured(text, image, groups=np.array([7, 7, 9]))
    assert found["text_to_image"]["recall@1"]["value"] == pytest.approx(1 / 3)
    assert found["same_image"]["text_to_image"]["recall@1"]["value"] == 1
    assert found["same_text"]["text_to_image"]["recall@1"]["value"] == pytest.approx(1 / 3)


def test_the_control_is_at_chance_where_the_model_is_perfect():
    vectors = unit(np.random.default_rng(1).normal(size=(300, 32)))
    found = retrieval.control(lambda: [vectors[:100], vectors[100:]], lambda: [vectors], 300, seed=3)
    for direction in DIRECTIONS:
        for name, figure in found[direction].items():
            assert figure["value"] == pytest.approx(figure["chance"], rel=0.2), name
            assert figure["low"] < figure["chance"] < figure["high"], name


def test_slices_have_their_own_counts_and_intervals_among_all_candidates():
    vectors = unit(np.random.default_rng(1).normal(size=(60, 16)))
    ids, articles = (dict.fromkeys(DIRECTIONS, values) for values in ([str(i) for i in range(60)], range(60)))
    rows = retrieval.rows_of(ids, articles, rank(vectors, vectors, {"strict": own(60)}))
    rows = rows.append_column("license", pa.array((["CC0"] * 20 + ["CC BY"] * 40) * 2))
    found = retrieval.slices(rows, 60, ["license"], 50, 0)["license"]
    assert {name: entry["n"] for name, entry in found.items()} == {"CC0": 20, "CC BY": 40}
    figure = found["CC0"]["text_to_image"]["recall@10"]
    assert (figure["value"], figure["chance"]) == (1, 10 / 60)
    assert 0.7 < figure["low"] < 1


def test_slices_by_number_come_in_the_order_of_their_numbers():
    vectors = unit(np.random.default_rng(1).normal(size=(6, 16)))
    ids, articles = (dict.fromkeys(DIRECTIONS, values) for values in (list("abcdef"), range(6)))
    rows = retrieval.rows_of(ids, articles, rank(vectors, vectors, {"strict": own(6)}))
    words = ["over 200", "101 to 200", "11 to 25", "unknown", "1 to 10", "26 to 50"]
    found = retrieval.slices(rows.append_column("words", pa.array(words * 2)), 6, ["words"], 20, 0)["words"]
    assert list(found) == ["1 to 10", "11 to 25", "26 to 50", "101 to 200", "over 200", "unknown"]


def test_recall_within_a_kind_has_the_kinds_own_pool_and_chance():
    vectors = unit(np.random.default_rng(1).normal(size=(60, 16)))
    out = retrieval.by_kind(vectors, vectors, ["gel"] * 20 + ["chart"] * 40, np.arange(60), draws=10, seed=0)
    assert list(out) == ["chart", "gel"]
    assert out["gel"]["n"] == 20
    assert out["gel"]["text_to_image"]["recall@10"]["chance"] == 0.5
    assert out["chart"]["image_to_text"]["recall@10"]["chance"] == 0.25
