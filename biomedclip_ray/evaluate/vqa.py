"""Visual questions answered by a linear readout of frozen vectors, over the answers that train holds.

Picture vector, question vector and their product go into a ridge classifier (closed form: what is measured is features,
not an optimiser). It is no fine-tuned VQA model and its figures are not those of one. What it can tell is whether the
picture helps: the same readout of the question alone, and with pictures of other groups put under the questions, stands
beside it. Closed and open questions are counted apart; an answer that train does not hold cannot be right.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from biomedclip_ray.evaluate.intervals import interval
from biomedclip_ray.evaluate.sets import LabelledSet

if TYPE_CHECKING:
    from biomedclip_ray.clip.encoder import Encoder

Floats = NDArray[np.floating[Any]]

PENALTIES = tuple(10.0**power for power in range(7))


def answer_questions(encoder: Encoder, labelled: LabelledSet, draws: int, seed: int) -> dict[str, Any]:
    """Figures of each split that the set names."""
    table = labelled.tables["images"]
    vectors = dict(zip(table["image_id"].to_pylist(), encoder.encode_images(table["image"].to_pylist()), strict=True))
    out: dict[str, Any] = {}
    for split, parts in labelled.splits.items():
        train, test = labelled.tables[parts["train"]], labelled.tables[parts["test"]]
        pictures = [np.stack([vectors[name] for name in rows["image_id"].to_pylist()]) for rows in (train, test)]
        questions = [encoder.encode_text(rows["question"].to_pylist()) for rows in (train, test)]
        out[split] = {
            "images_shared": parts["images_shared"],
            **readout(train, test, (pictures[0], questions[0]), (pictures[1], questions[1]), draws, seed),
        }
    return out


def readout(
    train: pa.Table, test: pa.Table, fit: tuple[Floats, Floats], ask: tuple[Floats, Floats], draws: int, seed: int
) -> dict[str, Any]:
    """Figures of one split.

    Args:
        train, test: the questions (columns of `sets.QUESTIONS`).
        fit, ask: picture and question vectors of train and of test, (n, d) each.
    """
    answers = np.array([normal(answer) for answer in train["answer"].to_pylist()])
    truth = np.array([normal(answer) for answer in test["answer"].to_pylist()])
    groups, clusters = (np.unique(rows["group"].to_pylist(), return_inverse=True)[1] for rows in (train, test))
    kinds, train_kinds = (np.array(rows["answer_type"].to_pylist()) for rows in (test, train))
    whole = _chosen(_features(*fit), answers, groups, seed)
    blind = _chosen(fit[1], answers, groups, seed)
    right = {
        "model": whole.predict(_features(*ask)) == truth,
        "question_only": blind.predict(ask[1]) == truth,
        "control_other_pictures": whole.predict(_features(ask[0][_elsewhere(clusters, seed)], ask[1])) == truth,
    }
    commonest = {kind: _commonest(answers[train_kinds == kind]) for kind in ("closed", "open")}
    guess = np.array([commonest[kind] for kind in kinds]) == truth
    known = np.isin(truth, answers)
    out: dict[str, Any] = {"n_train": len(answers), "answers": len(set(answers.tolist()))}
    for kind, mine in (("all", np.ones(len(truth), bool)), ("closed", kinds == "closed"), ("open", kinds == "open")):
        if mine.any():
            out[kind] = {"n": int(mine.sum()), "answer_in_train": float(known[mine].mean())}
            for name, hit in right.items():
                found = interval(_mean_of(hit[mine].astype(float)), clusters[mine], draws, seed)
                out[kind][name] = {**found, "chance": float(guess[mine].mean())}
    return out


def normal(answer: str) -> str:
    """An answer as it is compared: case, punctuation at the ends and runs of white space do not count."""
    return re.sub(r"\s+", " ", answer.lower()).strip(" .,;:!?\"'")


def _features(picture: Floats, question: Floats) -> Floats:
    return np.concatenate([picture, question, picture * question], axis=1)


def _chosen(features: Floats, answers: NDArray[Any], groups: NDArray[Any], seed: int) -> Pipeline:
    """The readout with the penalty that a held-back fifth of the training groups likes best, fitted on all of train."""
    fit, held = next(GroupShuffleSplit(1, test_size=0.2, random_state=seed).split(features, answers, groups))
    found = [
        (_ridge(p).fit(features[fit], answers[fit]).predict(features[held]) == answers[held]).mean() for p in PENALTIES
    ]
    return _ridge(PENALTIES[int(np.argmax(found))]).fit(features, answers)


def _ridge(penalty: float) -> Pipeline:
    return make_pipeline(StandardScaler(), RidgeClassifier(alpha=penalty))


def _elsewhere(clusters: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """For each row a random row of another cluster (its own where there is only one)."""
    random = np.random.default_rng(seed)
    rows = np.arange(len(clusters))
    others = [rows[clusters != cluster] for cluster in range(int(clusters.max()) + 1)]
    return np.array(
        [random.choice(others[c]) if len(others[c]) else row for row, c in zip(rows, clusters, strict=True)], np.int64
    )


def _commonest(answers: NDArray[Any]) -> str:
    if not len(answers):
        return ""
    values, counts = np.unique(answers, return_counts=True)
    return str(values[counts.argmax()])


def _mean_of(hits: Floats) -> Any:
    return lambda weights: float(weights @ hits / weights.sum())
