"""Metrics of labelled rows with all their draws: each is sorted or added up once, and a draw only weighs what is there.

Scores are float64 log-odds of the logits: their order is that of the probabilities, and they do not run into 1.0 as a
softmax does (float32 loses the order of everything beyond 17). Answers that tie count at their expectation. A class
without a row is left out of a mean over classes and named. Definitions where libraries differ stand beside each metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from biomedclip_ray.evaluate.curves import Curve
from biomedclip_ray.evaluate.intervals import Clusters, draw, mean_draws, share, spread, telling, weighted_means

Float64s = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS = 15
"""Of the reliability curve, equally wide. A confidence on an edge belongs to the bin below it (Guo et al. 2017,
arXiv 1706.04599); edges are found by whole numbers, so that 0.1 * 15 is no matter of the float type."""
_DIGITS = 12
"""Of log-odds behind the point."""
TEMPERATURES = (0.1, 10.0)
"""Between which a temperature is looked for: validation rows that are nearly all right would ask for none at all."""


@dataclass(frozen=True)
class Estimate:
    """One metric of one table of rows."""

    value: float
    drawn: Float64s
    """(draws,), in the order of the draws: two tables with the same clusters and seed are paired by it."""
    rows: int
    """On which it rests: of the rarest class where it averages over classes."""
    telling: int
    """Clusters that hold a row of the rarer outcome."""
    most: float = 1.0
    chance: float | None = None

    def figure(self, clusters: Clusters) -> dict[str, Any]:
        """`{value, low, high, draws, dropped}` and chance where it is known."""
        shown = share(self.value, spread(self.drawn, clusters), clusters, self.rows, self.telling, self.most)
        return shown if self.chance is None else shown | {"chance": self.chance}


def mean_estimates(
    columns: dict[str, Float64s],
    clusters: Clusters,
    draws: int,
    seed: int,
    chances: dict[str, float] | None = None,
    most: dict[str, float] | None = None,
) -> dict[str, Estimate]:
    """The means of columns of rows (hits, reciprocal ranks, squared errors)."""
    drawn = mean_draws(np.stack(list(columns.values()), axis=1), clusters, draws, seed)
    out = {}
    for number, (name, values) in enumerate(columns.items()):
        top = (most or {}).get(name, 1.0)
        count = telling(values, clusters, top)
        chance = (chances or {}).get(name)
        out[name] = Estimate(float(values.mean()), drawn[:, number], len(values), count, top, chance)
    return out


def log_odds(logits: Float64s) -> Float64s:
    """(n, classes): how much more likely each class is than all others together, as a logarithm. Two that are equal but
    for the order of their sums are equal: ties would fall one way or the other by the last bit.
    """
    logits = logits.astype(np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    if logits.shape[1] == 2:
        gap = logits[:, 1] - logits[:, 0]
        return np.stack([-gap, gap], axis=1)
    out = np.empty_like(logits)
    for c in range(logits.shape[1]):
        out[:, c] = logits[:, c] - logsumexp(np.sort(np.delete(logits, c, axis=1), axis=1), axis=1)
    return out.round(_DIGITS)


def probabilities(logits: Float64s) -> Float64s:
    """Softmax in float64, (n, classes)."""
    logits = logits.astype(np.float64)
    out: Float64s = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    return out


def choices(logits: Float64s) -> Float64s:
    """(n, classes): 1 for the class with the largest logit; where several share it each has its part."""
    best = logits == logits.max(axis=1, keepdims=True)
    out: Float64s = best / best.sum(axis=1, keepdims=True)
    return out


def top_k(labels: Ints, logits: Float64s, k: int) -> Float64s:
    """(n,) probability that the label is among the k largest logits when ties are broken at random."""
    own = logits[np.arange(len(labels)), labels][:, None]
    above, same = (logits > own).sum(axis=1), (logits == own).sum(axis=1)
    return np.clip((k - above) / same, 0.0, 1.0)


def classification(
    labels: Ints, logits: Float64s, clusters: Clusters, draws: int, seed: int, common: int | None = None
) -> dict[str, Estimate]:
    """Every metric of rows with one class each.

    - accuracy; balanced_accuracy: mean recall of the classes that have rows (scikit-learn's definition).
    - macro_f1, weighted_f1: over the classes that have rows (f1_score with labels= those).
    - auroc: one against rest, mean over classes; of two classes it is that of the second. auroc_pooled: of all (row,
      class) pairs together ("micro"; more than two classes). auprc: average precision (scikit-learn's), mean over
      classes.
    - top_5 (more than five classes). brier: sum over classes, halved for two (brier_score_loss). ece: BINS bins of the
      largest probability.

    Args:
        common: the class that a blind guesser would name: accuracy's chance level.
    """
    n, classes = logits.shape
    sizes = np.bincount(labels, minlength=classes)
    there = np.flatnonzero(sizes)
    rarest = int(sizes[there].min())
    holders = min(len(np.unique(clusters.of[labels == c])) for c in there)
    chosen, chance = choices(logits), probabilities(logits)
    right = chosen[np.arange(n), labels]
    hot = labels[:, None] == np.arange(classes)
    brier = ((chance - hot) ** 2).sum(axis=1) / (2 if classes == 2 else 1)
    columns = {"accuracy": right, "brier": brier}
    if classes > 5:
        columns["top_5"] = top_k(labels, logits, 5)
    chances: dict[str, float | None] = {"top_5": min(1.0, 5 / classes)}
    if common is not None:
        chances["accuracy"] = float(sizes[common] / n)
    cells = _cells(labels, chosen, clusters)
    gaps = _bin_gaps(chance.max(axis=1), right, clusters)

    def confusions(counts: NDArray[np.int32]) -> Float64s:
        return _of_confusions((cells.T @ counts.T).T.reshape(-1, classes, classes))

    def calibration(counts: NDArray[np.int32]) -> Float64s:
        found = counts.astype(np.float64) @ gaps
        gap: Float64s = np.abs(found[:, :-1]).sum(axis=1, keepdims=True) / found[:, -1:]
        return gap

    own = [c for c in there if sizes[c] < n]
    scores = log_odds(logits)
    # of two classes the second's order is the first's from below
    curves = [
        Curve.sort(hot[:, c], scores[:, c], clusters, both=classes == 2) for c in (own[-1:] if classes == 2 else own)
    ]
    if classes > 2 and own:
        every = Clusters(np.repeat(clusters.of, len(there)), clusters.count, clusters.effective, clusters.mean_size)
        curves.append(Curve.sort(hot[:, there].ravel(), scores[:, there].ravel(), every))
    functions = [weighted_means(np.stack(list(columns.values()), axis=1), clusters), confusions, calibration]
    mean, table, bins, *areas = draw([*functions, *curves], clusters, draws, seed)

    out = {}
    for number, (name, values) in enumerate(columns.items()):
        top = 2.0 if name == "brier" and classes > 2 else 1.0
        count = telling(values, clusters, top)
        out[name] = Estimate(float(values.mean()), mean[:, number], n, count, top, chances.get(name))
    whole = _of_confusions(np.asarray(cells.sum(axis=0)).reshape(1, classes, classes))[0]
    for number, name in enumerate(_NAMES):
        level = 1 / len(there) if name == "balanced_accuracy" else None
        out[name] = Estimate(float(whole[number]), table[:, number], rarest, holders, 1.0, level)
    ece = float(np.abs(gaps[:, :-1].sum(axis=0)).sum() / n)
    out["ece"] = Estimate(ece, bins[:, 0], n, telling(right, clusters))
    if own:
        rest = min(int(min(sizes[c], n - sizes[c])) for c in own)
        found = list(zip(curves, areas, strict=True))
        if classes > 2:
            curve, drawn = found.pop()
            out["auroc_pooled"] = Estimate(curve.whole()[0], drawn[:, 0], rest, holders, 1.0, 0.5)
        out["auroc"] = _mean_of([(curve.whole()[:1], drawn[:, :1]) for curve, drawn in found], rest, holders, 0.5)
        base = float(np.mean([sizes[c] / n for c in own]))
        out["auprc"] = _mean_of([(curve.whole()[1:], drawn[:, 1:]) for curve, drawn in found], rest, holders, base)
    return out


def multilabel(
    truths: NDArray[np.bool_], scores: Float64s, clusters: Clusters, draws: int, seed: int
) -> dict[str, Estimate]:
    """Metrics of rows that have any number of labels: auroc and auprc, means over the labels that have rows of both
    kinds, and accuracy and F1 of "the positive prompt is nearer", means over the same labels.

    Args:
        truths, scores: (n, labels); a score is the logit of the positive prompt less that of the negative one.
    """
    own = [c for c in range(truths.shape[1]) if 0 < truths[:, c].sum() < len(truths)]
    if not own:
        return {}
    truths, scores = truths[:, own], scores[:, own]
    answers = np.where(scores == 0, 0.5, scores > 0)
    right = np.where(truths, answers, 1 - answers)
    parts = np.concatenate([answers * truths, answers + truths, right], axis=1)
    curves = [Curve.sort(truths[:, c], scores[:, c], clusters) for c in range(len(own))]
    means, *areas = draw([weighted_means(parts, clusters), *curves], clusters, draws, seed)

    def f1_and_accuracy(found: Float64s) -> Float64s:
        both, either, correct = np.split(found, 3, axis=1)
        f1 = np.where(either > 0, 2 * both / np.maximum(either, 1e-300), 0)
        return np.stack([f1.mean(axis=1), correct.mean(axis=1)])

    f1, accuracy = f1_and_accuracy(means)
    (whole_f1,), (whole_accuracy,) = f1_and_accuracy(parts.mean(axis=0, keepdims=True))
    rest = int(min(min(truths[:, c].sum(), (~truths[:, c]).sum()) for c in range(len(own))))
    holders = min(len(np.unique(clusters.of[truths[:, c]])) for c in range(len(own)))
    found = list(zip(curves, areas, strict=True))
    shares = truths.mean(axis=0)
    return {
        "auroc": _mean_of([(curve.whole()[:1], drawn[:, :1]) for curve, drawn in found], rest, holders, 0.5),
        "auprc": _mean_of(
            [(curve.whole()[1:], drawn[:, 1:]) for curve, drawn in found], rest, holders, float(shares.mean())
        ),
        "macro_f1": Estimate(float(whole_f1), f1, rest, holders),
        "accuracy": Estimate(
            float(whole_accuracy), accuracy, len(truths), holders, 1.0, float(np.maximum(shares, 1 - shares).mean())
        ),
    }


def _mean_of(found: Sequence[tuple[Float64s, Float64s]], rows: int, holders: int, chance: float) -> Estimate:
    """Mean over classes, each with its value(s) and draws; in a draw over the classes that it holds."""
    drawn = np.concatenate([draws for _, draws in found], axis=1)
    there = np.isfinite(drawn)
    with np.errstate(invalid="ignore"):
        mean = np.where(there, drawn, 0).sum(axis=1) / there.sum(axis=1)
    value = float(np.mean(np.concatenate([values for values, _ in found])))
    return Estimate(value, mean, max(rows, 1), holders, 1.0, chance)


_NAMES = ("balanced_accuracy", "macro_f1", "weighted_f1")


def _of_confusions(confusions: Float64s) -> Float64s:
    """(draws, 3): the metrics of _NAMES from (draws, truth, answer) counts."""
    right = np.einsum("dcc->dc", confusions)
    sizes, named = confusions.sum(axis=2), confusions.sum(axis=1)
    there = sizes > 0
    recall = np.where(there, right / np.maximum(sizes, 1e-300), 0)
    f1 = np.where(there, 2 * right / np.maximum(sizes + named, 1e-300), 0)
    number = there.sum(axis=1)
    weighted = (f1 * sizes).sum(axis=1) / sizes.sum(axis=1)
    return np.stack([recall.sum(axis=1) / number, f1.sum(axis=1) / number, weighted], axis=1)


def _cells(labels: Ints, chosen: Float64s, clusters: Clusters) -> Any:
    """(clusters, classes x classes) sparse: each cluster's part of the confusion."""
    rows, answers = np.nonzero(chosen)
    cells = labels[rows] * chosen.shape[1] + answers
    shape = (clusters.count, chosen.shape[1] ** 2)
    return sparse.csr_matrix((chosen[rows, answers], (clusters.of[rows], cells)), shape=shape)


def confusion(labels: Ints, logits: Float64s) -> list[list[float]]:
    """Counts, truth by answer; a tie is shared."""
    hot = (labels[:, None] == np.arange(logits.shape[1])).astype(float)
    return [[round(float(cell), 6) for cell in row] for row in hot.T @ choices(logits)]


def bins_of(confidence: Float64s) -> Ints:
    """(n,) the bin of each confidence, by the edge rule of BINS."""
    return np.clip(np.ceil(np.round(confidence * BINS, 6)).astype(np.int64) - 1, 0, BINS - 1)


def _bin_gaps(confidence: Float64s, right: Float64s, clusters: Clusters) -> Float64s:
    """(clusters, BINS + 1): in each bin the sum of right less confidence; last the number of rows."""
    out = np.zeros((clusters.count, BINS + 1))
    np.add.at(out, (clusters.of, bins_of(confidence)), right - confidence)
    out[:, -1] = np.bincount(clusters.of, minlength=clusters.count)
    return out


def reliability(labels: Ints, logits: Float64s) -> list[dict[str, float]]:
    """The curve behind ece: for each bin that has rows its count, mean confidence and accuracy."""
    confidence, right = probabilities(logits).max(axis=1), choices(logits)[np.arange(len(labels)), labels]
    place, out = bins_of(confidence), []
    for bin_ in range(BINS):
        mine = place == bin_
        if mine.any():
            row = {"n": int(mine.sum()), "confidence": float(confidence[mine].mean())}
            out.append(row | {"accuracy": float(right[mine].mean())})
    return out


def per_class(labels: Ints, logits: Float64s, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """n, recall, precision, F1, AUROC and average precision of each class that has rows (values without intervals)."""
    chosen, scores = choices(logits), log_odds(logits)
    alone = Clusters.number(np.arange(len(labels)))
    out: dict[str, dict[str, Any]] = {}
    for c, name in enumerate(classes):
        truth = labels == c
        if not truth.any():
            continue
        hit, named = float(chosen[truth, c].sum()), float(chosen[:, c].sum())
        found: dict[str, Any] = {"n": int(truth.sum()), "recall": hit / float(truth.sum())}
        found["precision"] = hit / named if named else None
        found["f1"] = 2 * hit / (named + float(truth.sum()))
        if not truth.all():
            area, precision = Curve.sort(truth, scores[:, c], alone).whole()
            found |= {"auroc": float(area), "auprc": float(precision)}
        out[name] = found
    return out


def per_label(truths: NDArray[np.bool_], scores: Float64s, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The same of labels by prompt pairs, whose answer is "the positive prompt is nearer" (a tie is half of one)."""
    alone = Clusters.number(np.arange(len(truths)))
    answers = np.where(scores == 0, 0.5, scores > 0)
    out: dict[str, dict[str, Any]] = {}
    for c, name in enumerate(classes):
        truth = truths[:, c]
        found: dict[str, Any] = {"n": int(truth.sum())}
        if truth.any():
            hit, named = float(answers[truth, c].sum()), float(answers[:, c].sum())
            found |= {"recall": hit / found["n"], "precision": hit / named if named else None}
            found["f1"] = 2 * hit / (named + found["n"])
        if truth.any() and not truth.all():
            area, precision = Curve.sort(truth, scores[:, c], alone).whole()
            found |= {"auroc": float(area), "auprc": float(precision)}
        out[name] = found
    return out


def temperature(labels: Ints, logits: Float64s) -> float | None:
    """What divides the logits so that the likelihood of validation rows is largest, within TEMPERATURES; None where
    every one of them is right, which would ask for no doubt at all (Guo et al. 2017, section 4.2).
    """
    if (choices(logits)[np.arange(len(labels)), labels] == 1).all():
        return None
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        return float((logsumexp(scaled, axis=1) - scaled[rows, labels]).mean())

    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
