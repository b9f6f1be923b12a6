"""Linear probe: how much of a labelled set a linear classifier reads off frozen image vectors, with all labels and with
few.

Logistic regression; its strength is chosen by log loss over repeated stratified folds that keep a group's rows together
(Kornblith et al. 2019 choose on validation data; sets of this size have none to spare), then fitted on all of train.
The test split is looked at once. The control permutes the labels of the test rows: nothing is fitted again.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from biomedclip_ray.evaluate.sets import LabelledSet
from biomedclip_ray.evaluate.tasks import Floats, Test, TooLittle, Vectors, answers

Ints = NDArray[np.int64]

STRENGTHS = tuple(10.0**power for power in range(-4, 4))
FOLDS, REPEATS = 3, 2
SHARES = (0.01, 0.05, 0.1, 0.5, 1.0)
SHOTS = (1, 2, 4, 8, 16, 32)
SEEDS = 5
FEW_STRENGTH = 1.0
"""Where labels are too few to choose a strength: the middle of STRENGTHS on standardised vectors."""


class LinearProbe:
    """All labels of train."""

    name: ClassVar[str] = "linear_probe"
    kind: ClassVar[str] = "classification"
    columns: ClassVar[dict[str, tuple[str, ...]]] = {"train": ("image", "label"), "test": ("image", "label")}

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.strength = 0.0
        self.n_train = 0

    def run(self, vectors: Vectors, labelled: LabelledSet) -> pa.Table:
        train, labels, groups = training(vectors, labelled)
        test = Test.of(vectors, labelled)
        self.strength = choose(train, labels, groups, len(labelled.classes), self.seed)
        self.n_train = len(labels)
        logits = fitted(train, labels, self.strength, test.images, len(labelled.classes))
        return answers(test.ids, test.clusters, test.labels, logits)

    def about(self, vectors: Vectors, labelled: LabelledSet, rows: pa.Table) -> dict[str, Any]:
        return {"n_train": self.n_train, "C": self.strength}


def training(vectors: Vectors, labelled: LabelledSet) -> tuple[Floats, Ints, NDArray[Any]]:
    """Vectors, labels and groups of train.

    Raises:
        TooLittle: no train table, one class or one group in it.
    """
    if "train" not in labelled.tables:
        raise TooLittle("there is no train table")
    table = labelled.tables["train"]
    images = vectors.images("train")
    kept = np.flatnonzero(np.isfinite(images).all(axis=1))
    labels, groups = table.labels[kept], np.array(table.clusters)[kept]
    if not len(labels):
        raise TooLittle("no image of the train table has a finite vector")
    if len(set(labels.tolist())) < 2:
        raise TooLittle("train holds rows of one class; a classifier needs two")
    if len(set(groups.tolist())) < 2:
        raise TooLittle("train holds one group; nothing can be held back from it")
    return images[kept], labels, groups


def choose(train: Floats, labels: Ints, groups: NDArray[Any], classes: int, seed: int, repeats: int = REPEATS) -> float:
    """The strength with the least log loss over repeated grouped folds; FEW_STRENGTH where a class has fewer groups
    than folds (a fold without a class would decide nothing and say nothing).
    """
    holders = min(len(np.unique(groups[labels == c])) for c in np.unique(labels))
    if holders < FOLDS:
        return FEW_STRENGTH
    losses = np.zeros(len(STRENGTHS))
    for repeat in range(repeats):
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed + repeat)
        for fit, held in folds.split(train, labels, groups):
            if len(np.unique(labels[fit])) < len(np.unique(labels)):
                continue
            for at, strength in enumerate(STRENGTHS):
                logits = fitted(train[fit], labels[fit], strength, train[held], classes)
                odds = np.exp(logits - logits.max(axis=1, keepdims=True))
                losses[at] += log_loss(labels[held], odds / odds.sum(axis=1, keepdims=True), labels=range(classes))
    return float(STRENGTHS[int(np.argmin(losses))]) if losses.any() else FEW_STRENGTH


def fitted(train: Floats, labels: Ints, strength: float, test: Floats, classes: int) -> Floats:
    """(n, classes) float64 logits of the test rows; a class that the fit never saw is far below all others."""
    probe: Pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties on separable vectors: the answer stands
        probe.fit(train.astype(np.float64), labels)
    found = probe.decision_function(test.astype(np.float64))
    seen = probe.named_steps["logisticregression"].classes_
    if found.ndim == 1:  # two classes: the second's log-odds
        found = np.stack([-found / 2, found / 2], axis=1)
    logits = np.full((len(test), classes), float(found.min()) - 50.0)
    logits[:, seen] = found
    return logits


def few_labels(vectors: Vectors, labelled: LabelledSet, seed: int = 0) -> dict[str, Any]:
    """Accuracy and balanced accuracy with a share of the labels and with a few of each class: mean and spread of SEEDS
    draws.

    Returns:
        {"share" | "shots": [{at, n, accuracy: {mean, sd}, balanced_accuracy: {...}} or {at, left_out: sentence}]}
    """
    train, labels, groups = training(vectors, labelled)
    asked = Test.of(vectors, labelled)
    truth, test, classes = asked.labels, asked.images, len(labelled.classes)
    there = np.unique(truth)
    out: dict[str, Any] = {"seeds": SEEDS, "share": [], "shots": []}
    for kind, points in (("share", SHARES), ("shots", SHOTS)):
        for point in points:
            found, sizes = [], []
            sentence, strength = "", FEW_STRENGTH
            for draw in range(1 if point == 1.0 and kind == "share" else SEEDS):
                try:
                    rows = _few(labels, kind, point, np.random.default_rng([seed, draw]))
                except TooLittle as error:
                    sentence = str(error)
                    break
                if not draw:  # chosen once a point: it is most of the work, and moves little from draw to draw
                    strength = choose(train[rows], labels[rows], groups[rows], classes, seed, repeats=1)
                right = fitted(train[rows], labels[rows], strength, test, classes).argmax(axis=1) == truth
                found.append((right.mean(), np.mean([right[truth == c].mean() for c in there])))
                sizes.append(len(rows))
            if sentence:
                out[kind].append({"at": point, "left_out": sentence})
                continue
            table = np.array(found)
            entry: dict[str, Any] = {"at": point, "n": int(np.mean(sizes))}
            for column, name in enumerate(("accuracy", "balanced_accuracy")):
                spread = float(table[:, column].std(ddof=1)) if len(table) > 1 else 0.0
                entry[name] = {"mean": float(table[:, column].mean()), "sd": spread}
            out[kind].append(entry)
    return out


def _few(labels: Ints, kind: str, point: float, random: np.random.Generator) -> Ints:
    """Rows of train: a share of each class (at least one), or so many of each class."""
    rows = []
    for c in np.unique(labels):
        own = random.permutation(np.flatnonzero(labels == c))
        if kind == "shots" and len(own) < point:
            raise TooLittle(f"class number {c} has {len(own)} rows in train, {int(point)} are asked")
        wanted = int(point) if kind == "shots" else round(point * len(own))
        if wanted < 1:
            raise TooLittle(f"{point:.0%} of the {len(own)} rows of class number {c} is less than one")
        rows.append(own[:wanted])
    return np.concatenate(rows)
