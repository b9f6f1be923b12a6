"""95% intervals that hold with few clusters, near 0 and near 1.

Figures of one article, questions on one image and cells of one smear resemble each other, so whole clusters are drawn
(Field & Welsh 2007, J. R. Stat. Soc. B 69:369). Percentiles of those draws are too narrow with few clusters and have no
width where every row is right. So the draws give the variance only, and the interval of a share is Wilson's score
interval with the effective number of rows that this variance stands for and the t quantile of the effective number of
clusters (Korn & Graubard 1998, Survey Methodology 24:193; Dean & Pagano 2015, J. Surv. Stat. Methodol. 3:484). A
variance from few clusters with a miss (or a hit) in them says little: it is weighed by their number against one
cluster's worth of intraclass correlation 0.15. benchmarks/intervals.py simulates it: 94.3 to 97.4% in every cell
from 20 clusters on (4,000 sets each).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Float64s = NDArray[np.float64]
Ints = NDArray[np.int64]
Figure = dict[str, Any]

METHOD = (
    "Wilson score interval with the effective number of rows of a cluster bootstrap variance and a t quantile; "
    "medians: Woodruff"
)
ICC, WEIGHT = 0.15, 1.0
"""Intraclass correlation that stands in for an unknown one, and the clusters that it weighs as much as."""

_CHUNK = 1 << 20
"""Numbers of the draws held at once (4 MB)."""

Weighted = Callable[[NDArray[np.int32]], Float64s]
"""How often each cluster is in some draws (k, clusters) -> (k, m) figures; NaN where a draw lacks what a
figure needs.
"""


@dataclass(frozen=True)
class Clusters:
    """What the draws draw: the cluster of each row, numbered from 0."""

    of: Ints
    count: int
    effective: float
    """Clusters of equal size that tell as much: n**2 / sum of squared sizes."""
    mean_size: float
    """Size of the cluster that an average row is in."""

    @classmethod
    def number(cls, names: NDArray[Any]) -> Clusters:
        """Clusters from any names. Raises ValueError without rows."""
        if not len(names):
            raise ValueError("no rows to measure")
        _, of = np.unique(names, return_inverse=True)
        sizes = np.bincount(of)
        squares = float((sizes.astype(float) ** 2).sum())
        return cls(of.astype(np.int64), len(sizes), len(of) ** 2 / squares, squares / len(of))

    def quantile(self) -> float:
        """The t quantile of these clusters; at least three degrees of freedom, below which no interval helps."""
        return float(stats.t.ppf(0.975, max(self.effective - 1, 3.0)))

    def draws(self, draws: int, seed: int) -> Iterator[NDArray[np.int32]]:
        """How often each cluster is in each draw, (some draws, clusters) at a time."""
        random = np.random.default_rng(seed)
        step = max(1, _CHUNK // max(self.count, 1))
        for start in range(0, draws, step):
            out = np.empty((min(step, draws - start), self.count), np.int32)
            for row in out:
                row[:] = np.bincount(
                    random.integers(self.count, size=self.count, dtype=np.uint32), minlength=self.count
                )
            yield out


@dataclass(frozen=True)
class Spread:
    """What the draws gave for one figure."""

    variance: float
    used: int
    dropped: int


def spread(figures: Float64s, clusters: Clusters) -> Spread:
    """Variance of (draws,) figures, with the factor that drawing from few clusters leaves out. NaN ones are dropped."""
    there = figures[np.isfinite(figures)]
    factor = clusters.count / (clusters.count - 1) if clusters.count > 1 else 1.0
    variance = float(there.var(ddof=1)) * factor if len(there) > 1 else 0.0
    return Spread(variance, len(there), len(figures) - len(there))


def share(value: float, found: Spread, clusters: Clusters, rows: int, telling: int, most: float = 1.0) -> Figure:
    """`{value, low, high, draws, dropped}` of a figure between 0 and `most`.

    Args:
        rows: on which the figure rests at least (those of the rarest class for one that averages over classes).
        telling: clusters that hold a row of the rarer outcome; their number weighs the variance that was found.
    """
    p = min(max(value / most, 0.0), 1.0)
    plain = p * (1 - p) / rows
    expected = 1 + ICC * (clusters.mean_size - 1)
    variance = found.variance / most**2
    effect = expected
    if plain > 0 and variance > 0:
        effect = (telling * variance / plain + WEIGHT * expected) / (telling + WEIGHT)
    low, high = wilson(p, rows / effect, clusters.quantile())
    return {"value": value, "low": low * most, "high": high * most, "draws": found.used, "dropped": found.dropped}


def wilson(p: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval (Wilson 1927, JASA 22:209) of a share p of n rows; n need not be whole."""
    z = quantile**2 / n
    middle, half = p + z / 2, float(np.sqrt(p * (1 - p) * z + z * z / 4))
    low, high = (middle - half) / (1 + z), (middle + half) / (1 + z)
    return (0.0 if p == 0 else max(low, 0.0)), (1.0 if p == 1 else min(high, 1.0))


def difference(value: float, found: Spread, clusters: Clusters, rows: int, most: float = 1.0) -> Figure:
    """`{value, low, high, p, draws, dropped}` of a difference between -most and most.

    Two rows that differ, one each way, are added to the variance (Bonett & Price 2012, J. Educ. Behav. Stat. 37:479),
    so that two bundles which agree on every row of a small set are not called equal for certain.
    """
    variance = found.variance + 2 * (most / (rows + 2)) ** 2
    error = float(np.sqrt(variance))
    freedom = max(clusters.effective - 1, 3.0)
    half = clusters.quantile() * error
    p = float(2 * stats.t.sf(abs(value) / error, freedom))
    out = {"value": value, "low": max(value - half, -most), "high": min(value + half, most), "p": p}
    return out | {"draws": found.used, "dropped": found.dropped}


NO_DIFFERENCE: Figure = {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "draws": 0, "dropped": 0}
"""A bundle against itself."""


def median(values: Float64s, clusters: Clusters) -> Figure:
    """The median with Woodruff's interval (1952, JASA 47:635): the interval of the share at or under it, read off the
    values. Needs no draws."""
    ordered = np.sort(values)
    value = float(np.median(ordered))
    under = (values <= value).astype(float)
    p = float(under.mean())
    variance = mean_variance(under[:, None], clusters)[0]
    shown = share(p, Spread(variance, 0, 0), clusters, len(values), telling(under, clusters))
    low, high = (np.clip(0.5 + shown[end] - p, 0, 1) for end in ("low", "high"))
    last = len(ordered) - 1
    return {
        "value": value,
        "low": float(min(ordered[int(np.floor(low * last))], value)),
        "high": float(max(ordered[int(np.ceil(high * last))], value)),
        "draws": 0,
        "dropped": 0,
    }


def mean_variance(values: Float64s, clusters: Clusters) -> Float64s:
    """Variance of each column's mean under clustering, linearised: what endless draws would give, (m,)."""
    n, count = len(values), clusters.count
    if count < 2:
        return np.zeros(values.shape[1])
    rest = values - values.mean(axis=0)
    sums = np.stack([np.bincount(clusters.of, column, count) for column in rest.T], axis=1)
    out: Float64s = (sums**2).sum(axis=0) / n**2 * count / (count - 1)
    return out


def telling(values: Float64s, clusters: Clusters, most: float = 1.0) -> int:
    """Clusters that hold a row of the rarer outcome: something above 0, or something below `most`."""
    own = np.bincount(clusters.of, values, clusters.count)
    sizes = np.bincount(clusters.of, minlength=clusters.count)
    return int(min((own > 1e-12).sum(), (sizes * most - own > 1e-9).sum()))


def draw(functions: Sequence[Weighted], clusters: Clusters, draws: int, seed: int) -> list[Float64s]:
    """What each function gives for the same draws, (draws, m) each. They are drawn once: drawing costs as much as a
    metric.
    """
    none = np.empty((0, clusters.count), np.int32)  # so that no draws at all have the right shape too
    parts: list[list[Float64s]] = [[function(none)] for function in functions]
    for counts in clusters.draws(draws, seed):
        for function, found in zip(functions, parts, strict=True):
            found.append(function(counts))
    return [np.concatenate(found) for found in parts]


def weighted_means(values: Float64s, clusters: Clusters) -> Weighted:
    """Means of the columns of `values` (n, m), as one matrix product for all draws."""
    sums = np.stack([np.bincount(clusters.of, column, clusters.count) for column in values.T], axis=1)
    table = np.concatenate([sums, np.bincount(clusters.of, minlength=clusters.count)[:, None]], axis=1)

    def means_of(counts: NDArray[np.int32]) -> Float64s:
        found = counts.astype(np.float64) @ table
        out: Float64s = found[:, :-1] / found[:, -1:]
        return out

    return means_of


def mean_draws(values: Float64s, clusters: Clusters, draws: int, seed: int) -> Float64s:
    """(draws, m): means of the columns of `values` (n, m) in each draw."""
    return draw([weighted_means(values, clusters)], clusters, draws, seed)[0]


def means(
    columns: Mapping[str, Float64s], clusters: Clusters, draws: int, seed: int, most: Mapping[str, float] | None = None
) -> dict[str, Figure]:
    """Each column's mean with its interval, from one set of draws. `most`: the largest value where it is not 1."""
    if not columns:
        return {}
    found = mean_draws(np.stack(list(columns.values()), axis=1), clusters, draws, seed)
    out = {}
    for (name, values), drawn in zip(columns.items(), found.T, strict=True):
        top = (most or {}).get(name, 1.0)
        count = telling(values, clusters, top)
        out[name] = share(float(values.mean()), spread(drawn, clusters), clusters, len(values), count, top)
    return out
