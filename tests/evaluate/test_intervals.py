"""Intervals against a simulation and against what must never happen: no width, an end outside, other draws for one
seed.
"""

import numpy as np
import pytest

from biomedclip_ray.evaluate.intervals import Clusters, difference, mean_draws, means, median, spread, wilson


def simulated(sets: int, clusters: int, centre: float, seed: int = 0):
    """Hits of figures in articles of mean size 4.3 whose difficulty differs, and the true recall."""
    random = np.random.default_rng(seed)
    level = np.log(centre / (1 - centre))
    truth = float((1 / (1 + np.exp(-(level + random.normal(size=400_000))))).mean())
    for _ in range(sets):
        sizes = 1 + random.poisson(3.3, clusters)
        chance = 1 / (1 + np.exp(-(level + random.normal(size=clusters))))
        of = np.repeat(np.arange(clusters), sizes)
        yield (random.random(len(of)) < chance[of]).astype(float), of, truth


@pytest.mark.parametrize(("clusters", "centre"), [(20, 0.3), (20, 0.95), (60, 0.1)])
def test_95_of_100_intervals_hold_the_truth_from_20_articles_on(clusters, centre):
    covered = []
    for hits, of, truth in simulated(400, clusters, centre):
        found = means({"recall": hits}, Clusters.number(of), 200, 0)["recall"]
        covered.append(found["low"] <= truth <= found["high"])
    assert 0.92 <= np.mean(covered) <= 0.99  # of 400 sets; benchmarks/intervals.py takes 4,000


def test_all_right_is_no_certainty():
    found = means({"a": np.ones(33)}, Clusters.number(np.repeat(np.arange(11), 3)), 500, 0)["a"]
    assert found["high"] == 1 and 0.7 < found["low"] < 0.95
    assert (found["draws"], found["dropped"]) == (500, 0)


def test_figures_of_one_article_widen_the_interval():
    random = np.random.default_rng(2)
    article = np.repeat(np.arange(50), 8)
    hits = np.repeat(random.random(50) < 0.5, 8).astype(float)
    alone, together = (means({"a": hits}, Clusters.number(of), 500, 0)["a"] for of in (np.arange(400), article))
    assert together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])


def test_the_same_seed_gives_the_same_draws_and_another_others():
    values = np.random.default_rng(0).random((50, 2))
    clusters = Clusters.number(np.arange(50))
    first, second, third = (mean_draws(values, clusters, 100, seed) for seed in (9, 9, 10))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)


def test_the_ends_of_wilsons_interval_are_where_the_score_test_turns():
    for end in wilson(0.7, 10, 1.96):
        assert abs(0.7 - end) == pytest.approx(1.96 * np.sqrt(end * (1 - end) / 10))


def test_the_interval_of_a_median_holds_about_95_of_100_true_ones():
    covered = []
    for seed in range(300):
        values = np.random.default_rng(seed).lognormal(size=120)
        found = median(values, Clusters.number(np.arange(120) // 3))
        covered.append(found["low"] <= 1.0 <= found["high"])
    assert 0.92 <= np.mean(covered) <= 0.99


def test_dropped_draws_are_counted():
    found = spread(np.array([0.1, np.nan, 0.3, np.nan]), Clusters.number(np.arange(4)))
    assert (found.used, found.dropped) == (2, 2)


def test_two_bundles_that_agree_on_every_row_are_not_called_equal_for_certain():
    clusters = Clusters.number(np.arange(33))
    found = difference(0.0, spread(np.zeros(500), clusters), clusters, 33)
    assert found["low"] < 0 < found["high"] and found["p"] == 1


def test_paired_intervals_hold_the_true_difference():
    covered = []
    random = np.random.default_rng(4)
    for _ in range(400):
        of = np.repeat(np.arange(40), 4)
        hard = random.normal(size=40)[of]
        a, b = (random.random(160) < 1 / (1 + np.exp(-(hard + level))) for level in (0.8, 0.0))
        clusters = Clusters.number(of)
        drawn = mean_draws(np.stack([a, b], axis=1).astype(float), clusters, 200, 0)
        found = difference(a.mean() - b.mean(), spread(drawn[:, 0] - drawn[:, 1], clusters), clusters, 160)
        covered.append(found["low"] <= 0.1633 <= found["high"])
    assert 0.92 <= np.mean(covered) <= 0.98
