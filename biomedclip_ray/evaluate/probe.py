"""Linear probe: how much of a labelled set a linear classifier reads off frozen image vectors.

Logistic regression, its strength chosen on a fifth of the training groups held back for that, then fitted on all of
train; the test split is looked at once. The control is the same fit on shuffled training labels, many times: where the
vectors lie in clusters, one shuffle by itself may look far better or worse than chance (77% of three classes was seen).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from biomedclip_ray.evaluate.classify import clusters_of, numbered, scores
from biomedclip_ray.evaluate.sets import LabelledSet

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

SHUFFLES = 20
STRENGTHS = tuple(10.0**power for power in range(-4, 4))


def linear_probe(labelled: LabelledSet, train: Floats, test: Floats, draws: int, seed: int) -> dict[str, Any]:
    """Figures of the test split.

    Args:
        train, test: (n, d) image vectors of the two splits' pictures, in order.
    """
    labels, groups = numbered(labelled, "train"), clusters_of(labelled, "train")
    truth, clusters = numbered(labelled, "test"), clusters_of(labelled, "test")
    common = int(np.bincount(labels).argmax())
    odds, strength = fit_and_answer(train, labels, groups, test, len(labelled.classes), seed)
    random, noise = np.random.default_rng(seed), []
    for _ in range(SHUFFLES):
        blind = _answer(_probe(strength).fit(train, random.permutation(labels)), test, len(labelled.classes))
        noise.append(scores(truth, blind, clusters, common, 1, seed))
    return {
        "n_train": len(labels),
        "n": len(truth),
        "C": strength,
        **scores(truth, odds, clusters, common, draws, seed),
        "control_shuffled": {name: _over(noise, name) for name in noise[0]} | {"fits": SHUFFLES},
    }


def fit_and_answer(
    train: Floats, labels: Ints, groups: Ints, test: Floats, classes: int, seed: int
) -> tuple[Floats, float]:
    """Class probabilities of the test rows, (n, classes), and the strength C that was chosen by group-wise log loss."""
    fit, held = next(GroupShuffleSplit(1, test_size=0.2, random_state=seed).split(train, labels, groups))
    losses = []
    for strength in STRENGTHS:
        odds = _answer(_probe(strength).fit(train[fit], labels[fit]), train[held], classes)
        losses.append(log_loss(labels[held], odds, labels=range(classes)))
    best = STRENGTHS[int(np.argmin(losses))]
    return _answer(_probe(best).fit(train, labels), test, classes), best


def _over(noise: list[dict[str, dict[str, float]]], name: str) -> dict[str, float]:
    """Mean and 95% range of one figure over the shuffled fits."""
    values = [figures[name]["value"] for figures in noise]
    low, high = np.quantile(values, [0.025, 0.975])
    return {"value": float(np.mean(values)), "low": float(low), "high": float(high), "chance": noise[0][name]["chance"]}


def _probe(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def _answer(probe: Pipeline, vectors: Floats, classes: int) -> Floats:
    """Probabilities with a column for every class, also for one that the fit never saw."""
    odds = np.full((len(vectors), classes), 1e-12)
    odds[:, probe.classes_] = probe.predict_proba(vectors)
    return odds / odds.sum(axis=1, keepdims=True)
