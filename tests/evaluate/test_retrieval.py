"""Ranks against hand-made scores and a naive n x n implementation; intervals, chance and control against theory."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from biomedclip_ray.clip.vectors import check_unit
from biomedclip_ray.evaluate import retrieval as r


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def naive_hits(scores: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """By the definition, from the whole score matrix, counting orderings of ties with binomials."""
    out = []
    for i, row in enumerate(scores):
        right = groups == groups[i]
        best = row[right].max()
        same = np.abs(row - best) <= r.TIE
        above = int((row > best + r.TIE).sum())
        m, t = int((same & right).sum()), int((same & ~right).sum())
        places = min(max(k - above, 0), m + t)
        out.append(1 - comb(t, places) / comb(m + t, places))
    return np.array(out)


def strict(text, image) -> r.Ranks:
    return r.rank(unit(text), unit(image), np.arange(len(text))).strict


def test_partners_at_rank_one_two_and_three_are_found_there():
    text = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    image = [[1, 0, 0], [0.9, 0.5, 0.1], [0.3, 0.9, 0.2]]
    ranks = strict(text, image)
    assert ranks.expected().tolist() == [1, 2, 1]
    assert ranks.hits(1).tolist() == [1, 0, 1]
    back = r.rank(unit(image), unit(text), np.arange(3)).strict
    assert back.expected().tolist() == [1, 2, 3]


def test_a_tie_counts_at_its_expected_rank():
    ranks = strict([[1, 0], [1, 0], [1, 0]], [[1, 0], [1, 0], [0, 1]])
    assert ranks.expected().tolist() == [1.5, 1.5, 3]
    assert ranks.hits(1).tolist() == [0.5, 0.5, 0]
    assert ranks.hits(5).tolist() == [1, 1, 1]


def test_a_collapsed_model_gets_exactly_the_chance_level():
    same = unit(np.ones((40, 8)))
    out, _ = r.retrieval(same, same, np.arange(40), np.arange(40), draws=20, seed=0)
    for direction in r.DIRECTIONS:
        assert out[direction]["recall@10"] == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25, "chance": 0.25})
        assert out[direction]["median_rank"]["value"] == 20.5


def test_equal_pictures_tie_though_rounding_differs():
    random = np.random.default_rng(0)
    image = unit(random.normal(size=(300, 64)))
    image[1::2] = image[::2]
    text = unit(image + 1e-4)
    assert r.rank(text, image, np.arange(300), block_bytes=4 * 300 * 7).strict.tied.tolist() == [1] * 300


def test_groups_make_every_copy_of_the_picture_right():
    text, image = [[1, 0], [0.7, 0.3], [0, 1]], [[0.8, 0.2], [1, 0], [0, 1]]
    ranks = r.rank(unit(text), unit(image), np.array([7, 7, 9]))
    assert ranks.strict.expected().tolist() == [2, 2, 1]  # the copy stands first
    assert ranks.grouped.expected().tolist() == [1, 1, 1]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_blocks_give_what_the_whole_score_matrix_gives(data):
    n = data.draw(st.integers(1, 14))
    # small whole numbers: many exact ties, and no two different scores closer than the tie's width
    vectors = hnp.arrays(np.int64, (n, 3), elements=st.integers(-2, 2))
    text, image = (data.draw(vectors) + np.array([0, 0, 3]) for _ in range(2))
    groups = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, 5)))
    permutation = np.array(data.draw(st.permutations(range(n))))
    rows = data.draw(st.integers(1, 20))
    got = r.rank(unit(text), unit(image), groups, [permutation], block_bytes=4 * n * rows)
    scores = unit(text).astype(np.float64) @ unit(image).T.astype(np.float64)
    for k in (1, 2, 5, 10):
        np.testing.assert_allclose(got.strict.hits(k), naive_hits(scores, np.arange(n), k), atol=1e-9)
        np.testing.assert_allclose(got.grouped.hits(k), naive_hits(scores, groups, k), atol=1e-9)
        np.testing.assert_allclose(
            got.controls[0].hits(k), naive_hits(scores[:, permutation], np.arange(n), k), atol=1e-9
        )


@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 5))
def test_the_expected_rank_is_the_sum_of_the_miss_probabilities(above, tied, right):
    ranks = r.Ranks(np.array([above]), np.array([tied]), np.array([right]))
    total = sum(1 - ranks.hits(k)[0] for k in range(above + tied + right + 1))
    assert ranks.expected()[0] == pytest.approx(total)


def test_the_shuffled_control_is_near_chance_where_the_model_is_perfect():
    vectors = unit(np.random.default_rng(1).normal(size=(300, 32)))
    out, _ = r.retrieval(vectors, vectors, np.arange(300), np.arange(300), draws=200, seed=3)
    for direction in r.DIRECTIONS:
        assert out[direction]["recall@1"]["value"] == 1
        control = out["control_shuffled"][direction]["recall@10"]
        assert control["chance"] == pytest.approx(10 / 300)
        assert control["value"] < 2 * control["chance"]
        assert control["value"] == pytest.approx(control["chance"], rel=0.25)
        assert out["control_shuffled"][direction]["median_rank"]["value"] == pytest.approx(150.5, rel=0.1)


def test_chance_with_groups_is_what_random_order_gives():
    groups = np.array([0, 0, 0, 1, 2, 2, 3, 4, 5, 6])
    random = np.random.default_rng(0)
    hits = []
    for _ in range(4000):
        top = groups[random.permutation(10)[:3]]
        hits.append(np.isin(groups, top).mean())
    assert r.chance_recall(3, 10, groups) == pytest.approx(np.mean(hits), abs=0.01)
    assert r.chance_recall(3, 10) == 0.3
    assert r.chance_recall(10, 4) == 1


def test_recall_within_a_kind_has_the_kinds_own_pool_and_chance():
    vectors = unit(np.random.default_rng(1).normal(size=(60, 16)))
    kinds = ["gel"] * 20 + ["chart"] * 40
    out = r.by_kind(vectors, vectors, kinds, np.arange(60), draws=10, seed=0)
    assert list(out) == ["chart", "gel"]
    assert out["gel"]["n"] == 20
    assert out["gel"]["text_to_image"]["recall@10"] == {"value": 1, "low": 1, "high": 1, "chance": 0.5}
    assert out["chart"]["image_to_text"]["recall@10"]["chance"] == 0.25


def test_vectors_that_are_not_unit_are_refused_with_the_row():
    vectors = unit(np.ones((3, 4)))
    vectors[1] *= 2
    with pytest.raises(ValueError, match=r"text vectors: 1 of 3 .*row 1 has length 2"):
        r.retrieval(vectors, vectors, np.arange(3), np.arange(3), draws=1, seed=0)
    vectors[1] = np.nan
    with pytest.raises(ValueError, match="row 1 has length nan"):
        check_unit(vectors, "image vectors")


def test_no_pairs_is_an_error():
    empty = np.empty((0, 4), np.float32)
    with pytest.raises(ValueError, match="no pairs"):
        r.retrieval(empty, empty, np.arange(0), np.arange(0), draws=1, seed=0)
