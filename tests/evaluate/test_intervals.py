"""Intervals against theory: coverage, clusters, repeatability."""

import numpy as np
import pytest

from biomedclip_ray.evaluate.intervals import _weighted_median, bootstrap, interval


def test_the_interval_covers_the_truth_about_95_times_in_100():
    random = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        values = (random.random((200, 1)) < 0.3).astype(float)
        (interval,), _ = bootstrap(values, values[:, 0], np.arange(200), 300, seed)
        covered += interval[0] <= 0.3 <= interval[1]
    assert 180 <= covered <= 199


def test_figures_of_one_article_widen_the_interval():
    random = np.random.default_rng(2)
    article = np.repeat(np.arange(50), 8)
    hits = np.repeat(random.random(50) < 0.5, 8).astype(float)[:, None]
    (alone,), _ = bootstrap(hits, hits[:, 0], np.arange(400), 500, 0)
    (together,), _ = bootstrap(hits, hits[:, 0], article, 500, 0)
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random((50, 2))
    first, second = (bootstrap(values, values[:, 0], np.arange(50), 100, 9) for _ in range(2))
    assert first[0].tolist() == second[0].tolist()
    assert first[1].tolist() == second[1].tolist()


@pytest.mark.parametrize(("weights", "median"), [([1, 1, 1], 2), ([2, 0, 1], 1), ([1, 0, 1], 2), ([0, 3, 1], 2)])
def test_the_weighted_median_is_that_of_the_repeated_values(weights, median):
    values = np.array([1.0, 2.0, 3.0])
    assert _weighted_median(values, np.array(weights)) == median == np.median(np.repeat(values, weights))


def test_any_figure_of_the_weights_gets_the_same_interval_as_a_mean():
    values = np.random.default_rng(3).random((60, 1))
    clusters = np.repeat(np.arange(20), 3)
    (mean,), _ = bootstrap(values, values[:, 0], clusters, 200, 4)
    found = interval(lambda weights: float(weights @ values[:, 0] / weights.sum()), clusters, 200, 4)
    assert [found["low"], found["high"]] == pytest.approx(mean)
    assert found["value"] == pytest.approx(values.mean())


def test_a_resample_without_what_the_figure_needs_is_left_out():
    rare = np.array([1, 0, 0, 0])
    found = interval(lambda weights: 0.5 if weights @ rare else float("nan"), np.arange(4), 100, 0)
    assert found == {"value": 0.5, "low": 0.5, "high": 0.5}
