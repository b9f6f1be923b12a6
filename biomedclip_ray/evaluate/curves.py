"""AUROC and average precision of one class against the rest, with all their draws: rows are sorted once, and a draw
only weighs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biomedclip_ray.evaluate.intervals import Clusters

POINTS = 100
"""Of a curve that is shown; areas are those of all rows."""

Float64s = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Curve:
    """Rows of one class against the rest, sorted once from the highest score down; called with draws it gives AUROC
    (ties count half) and average precision (a threshold's ties together), and with `both` that of the rest too, from
    the lowest score up.
    """

    positive: NDArray[np.bool_]
    of: Ints
    starts: Ints | None
    """First row of each run of equal scores; None where there are none."""
    both: bool

    @classmethod
    def sort(cls, truth: NDArray[np.bool_], scores: Float64s, clusters: Clusters, both: bool = False) -> Curve:
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        return cls(truth[order], clusters.of[order], None if len(starts) == len(scores) else starts, both)

    def whole(self) -> Float64s:
        """The figures of the rows themselves."""
        found: Float64s = self._of(np.ones((1, len(self.of)), np.int32))[0]
        return found

    def __call__(self, counts: NDArray[np.int32]) -> Float64s:
        step = max(1, (1 << 17) // len(self.of))  # what is made on the way stays in the cache
        parts = [self._of(np.take(counts[i : i + step], self.of, axis=1)) for i in range(0, max(len(counts), 1), step)]
        return np.concatenate(parts)

    def _of(self, weights: NDArray[np.int32]) -> Float64s:
        own = weights * self.positive
        if self.starts is not None:
            weights, own = (np.add.reduceat(a, self.starts, axis=1, dtype=np.int32) for a in (weights, own))
        hits, seen = np.cumsum(own, axis=1, dtype=np.int32), np.cumsum(weights, axis=1, dtype=np.int32)
        positives, total = hits[:, -1].astype(np.float64), seen[:, -1].astype(np.float64)
        rest = weights - own
        # pairs in which the positive one is above: the positives above each of the rest, half of those beside it
        wins = _dot(rest, hits) - 0.5 * _dot(rest, own)
        with np.errstate(invalid="ignore", divide="ignore"):
            area = wins / (positives * (total - positives))
            found = [area, _dot(own, hits / np.maximum(seen, 1)) / positives]
            if self.both:
                seen_up = seen[:, -1:] - seen + weights
                hits_up = (seen[:, -1:] - hits[:, -1:]) - (seen - hits) + rest
                found.append(_dot(rest, hits_up / np.maximum(seen_up, 1)) / (total - positives))
        for number, kind in enumerate((positives, total - positives), 1):
            if number < len(found):
                found[number][kind == 0] = np.nan
        return np.stack(found, axis=1)


def curves(truths: NDArray[np.bool_], scores: Float64s, classes: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """What plots show of each class that has rows of both kinds: `roc` as [false positive rate, recall] and
    `precision_recall` as [recall, precision], at most POINTS of each, thresholds from the highest score down.

    Args:
        truths, scores: (n, classes).
    """
    out: dict[str, dict[str, list[Any]]] = {}
    for c, name in enumerate(classes):
        order = np.argsort(-scores[:, c], kind="stable")
        truth, ordered = truths[order, c], scores[order, c]
        if not truth.any() or truth.all():
            continue
        last = np.flatnonzero(np.concatenate([ordered[1:] != ordered[:-1], [True]]))  # equal scores are one threshold
        hits, seen = np.cumsum(truth)[last], last + 1
        kept = np.unique(np.linspace(0, len(last) - 1, POINTS).round().astype(np.int64))
        recall, wrong = hits / truth.sum(), (seen - hits) / (~truth).sum()
        sides = {"roc": (wrong, recall), "precision_recall": (recall, hits / seen)}
        out[name] = {key: np.stack(pair, axis=1)[kept].round(4).tolist() for key, pair in sides.items()}
    return out


def _dot(left: NDArray[Any], right: NDArray[Any]) -> Float64s:
    """Row by row, in float64."""
    out: Float64s = np.einsum("ij,ij->i", left, right, dtype=np.float64)
    return out
