"""95% intervals by resampling whole clusters.

Figures of one article, questions on one picture and cells of one smear resemble each other; drawing them one by one would
give intervals that are too narrow. So whole clusters are drawn with replacement (Field & Welsh 2007, J. R. Stat. Soc. B
69:369) and the percentiles of what the resamples give are the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ENDS = (0.025, 0.975)


def bootstrap(
    values: NDArray[np.floating[Any]],
    ranks: NDArray[np.floating[Any]],
    clusters: NDArray[np.integer[Any]],
    draws: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95% percentile intervals of the means of `values` and of the median of `ranks`, from one set of resamples.

    Args:
        values: (n, m); ranks: (n,); clusters: (n,) any integers.

    Returns:
        (m, 2) and (2,): low and high.
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    count = int(cluster.max()) + 1
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, cluster, values)
    sizes = np.bincount(cluster, minlength=count).astype(float)
    order = np.argsort(ranks, kind="stable")
    ordered, ordered_cluster = ranks[order], cluster[order]
    means, medians = np.empty((draws, values.shape[1])), np.empty(draws)
    random = np.random.default_rng(seed)
    for draw in range(draws):
        weight = np.bincount(random.integers(count, size=count), minlength=count)
        means[draw] = weight @ sums / (weight @ sizes)
        medians[draw] = _weighted_median(ordered, weight[ordered_cluster])
    return np.quantile(means, _ENDS, axis=0).T, np.quantile(medians, _ENDS)


def _weighted_median(ordered: NDArray[np.floating[Any]], weights: NDArray[np.integer[Any]]) -> float:
    """Median of sorted values that each stand there `weights` times."""
    reach = np.cumsum(weights)
    low, high = np.searchsorted(reach, [(reach[-1] + 1) // 2, reach[-1] // 2 + 1])
    return float(ordered[low] + ordered[high]) / 2


def interval(
    metric: Callable[[NDArray[np.float64]], float], clusters: NDArray[Any], draws: int, seed: int
) -> dict[str, float]:
    """`{value, low, high}` of any figure that can be computed from the weight of each row.

    Args:
        metric: (n,) weights -> the figure; NaN where a resample lacks what it needs (those are left out).
        clusters: (n,) the cluster of each row.
    """
    found = np.array([metric(weights) for weights in _weights(clusters, draws, seed)])
    found = found[~np.isnan(found)]
    value = float(metric(np.ones(len(clusters))))
    low, high = np.quantile(found, _ENDS) if len(found) else (value, value)
    return {"value": value, "low": float(low), "high": float(high)}


def _weights(clusters: NDArray[Any], draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each row is in each resample, (n,)."""
    _, cluster = np.unique(clusters, return_inverse=True)
    count, random = int(cluster.max()) + 1, np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(random.integers(count, size=count), minlength=count)[cluster].astype(float)
