"""Zero-shot classification of a labelled set, with the prompts' spread, chance and a shuffled control.

The figure is that of all prompts together (Radford et al. 2021); each template's own accuracy stands beside it, because
it swings by many points and the best one must not be picked on the test set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_auc_score

from biomedclip_ray.clip.prompts import class_weights, classify
from biomedclip_ray.evaluate.intervals import interval
from biomedclip_ray.evaluate.sets import LabelledSet

if TYPE_CHECKING:
    from biomedclip_ray.clip.encoder import Encoder

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


def zero_shot(encoder: Encoder, labelled: LabelledSet, vectors: Floats, draws: int, seed: int) -> dict[str, Any]:
    """Figures of the test split.

    Args:
        vectors: (n, d) unit vectors of the test pictures, in order.
    """
    labels, clusters = numbered(labelled, "test"), clusters_of(labelled, "test")
    common = int(np.bincount(numbered(labelled, "train"), minlength=len(labelled.classes)).argmax())
    weights = class_weights(encoder, labelled.class_names, labelled.templates)
    odds = classify(vectors, weights, encoder.logit_scale)
    shuffled = np.random.default_rng(seed).permutation(labels)
    single = {
        template: float((_choice(vectors, class_weights(encoder, labelled.class_names, [template])) == labels).mean())
        for template in labelled.templates
    }
    return {
        "n": len(labels),
        "classes": labelled.classes,
        "class_names": labelled.class_names,
        "templates": labelled.templates,
        **scores(labels, odds, clusters, common, draws, seed),
        "accuracy_by_template": single,
        "control_shuffled": scores(shuffled, odds, clusters, common, draws, seed),
        "confusion": confusion_matrix(labels, odds.argmax(axis=1), labels=range(len(labelled.classes))).tolist(),
    }


def scores(
    labels: Ints, odds: Floats, clusters: Ints, common: int, draws: int, seed: int
) -> dict[str, dict[str, float]]:
    """accuracy, balanced_accuracy and auroc, each {value, low, high, chance}.

    Args:
        labels: (n,) class numbers.
        odds: (n, classes) scores; the largest is the answer. auroc is one against rest, averaged over the classes.
        clusters: (n,) what the intervals resample.
        common: the class that a blind guesser would name: accuracy's chance level.
    """
    classes = odds.shape[1]
    right = (odds.argmax(axis=1) == labels).astype(float)
    one_hot = labels[:, None] == np.arange(classes)

    def balanced(weights: NDArray[np.float64]) -> float:
        sizes = weights @ one_hot
        there = sizes > 0
        return float(((weights * right) @ one_hot)[there] @ (1 / sizes[there]) / there.sum())

    def area(weights: NDArray[np.float64]) -> float:
        sizes = weights @ one_hot
        if ((sizes == 0) | (sizes == weights.sum())).any():
            return float("nan")
        own = range(classes) if classes > 2 else (1,)  # two classes have one and the same curve
        return float(np.mean([roc_auc_score(one_hot[:, c], odds[:, c], sample_weight=weights) for c in own]))

    out = {
        "accuracy": interval(lambda weights: float(weights @ right / weights.sum()), clusters, draws, seed),
        "balanced_accuracy": interval(balanced, clusters, draws, seed),
        "auroc": interval(area, clusters, min(draws, 200), seed),  # a sort a draw: 200 settle an end to half a point
    }
    chances = {"accuracy": float((labels == common).mean()), "balanced_accuracy": 1 / classes, "auroc": 0.5}
    return {name: {**figure, "chance": chances[name]} for name, figure in out.items()}


def numbered(labelled: LabelledSet, table: str) -> Ints:
    """(n,) each row's class as a number in the order of `classes`."""
    place = {label: number for number, label in enumerate(labelled.classes)}
    return np.array([place[label] for label in labelled.tables[table]["label"].to_pylist()], np.int64)


def clusters_of(labelled: LabelledSet, table: str) -> Ints:
    """(n,) each row's group as a number; a row without group is a group of its own."""
    groups = labelled.tables[table]["group"].to_pylist()
    names = [f"row {row}" if group is None else f"group {group}" for row, group in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _choice(vectors: Floats, weights: Floats) -> Ints:
    return (vectors @ weights.T).argmax(axis=1)
