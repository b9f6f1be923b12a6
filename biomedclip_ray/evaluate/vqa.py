"""Visual questions answered by a linear readout of frozen vectors, over the answers that train holds.

Image vector, question vector and their product go into a ridge classifier (closed form: what is measured is features,
not an optimiser). It is no fine-tuned VQA model and its figures are not those of one. What it can tell is whether the
image helps: the same readout of the question alone, and with images of other groups put under the questions, stands
beside it, paired. Whether an image of test stands in train is counted here, by id and by content, and never taken from
a field.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from biomedclip_ray.evaluate.metrics import choices
from biomedclip_ray.evaluate.sets import LabelledSet
from biomedclip_ray.evaluate.tasks import Floats, TooLittle, Vectors

PENALTIES = tuple(10.0**power for power in range(7))
SYSTEMS = ("model", "question_only", "other_images", "majority", "zero_shot")
"""Who answered; `zero_shot` is asked closed questions that yes or no answers."""
MEASURES = ("exact", "token_f1", "bleu_1")


class Questions:
    """One split of a VQA set."""

    name: ClassVar[str] = "vqa"
    kind: ClassVar[str] = "vqa"
    columns: ClassVar[dict[str, tuple[str, ...]]] = {
        "test": ("question_id", "image_id", "question", "answer", "answer_type")
    }

    def __init__(self, split: str, seed: int = 0) -> None:
        self.split, self.seed = split, seed

    def run(self, vectors: Vectors, labelled: LabelledSet) -> pa.Table:
        parts = labelled.splits[self.split]
        if "train" not in parts:
            raise TooLittle("there is no train table, and the readout learns its answers there")
        images = dict(zip(labelled.tables["images"].ids, vectors.images("images"), strict=True))
        train, test = (_with_image(labelled.questions[parts[part]], images) for part in ("train", "test"))
        for rows, name in ((train, "train"), (test, "test")):
            if not rows.num_rows:
                raise TooLittle(f"no question of {name} has an image with a finite vector")
        shown = [np.stack([images[name] for name in rows["image_id"].to_pylist()]) for rows in (train, test)]
        asked = [vectors.encode_text(rows["question"].to_pylist()) for rows in (train, test)]
        rows = answer(train, test, (shown[0], asked[0]), (shown[1], asked[1]), self.seed)
        return rows.append_column("zero_shot.exact", pa.array(_yes_or_no(vectors, test, shown[1]), pa.float64()))

    def fused(self, labelled: LabelledSet, said: pa.Table) -> pa.Table:
        """The rows of a fusion head's answers, `fusion.SAID`."""
        train, test = (labelled.questions[labelled.splits[self.split][part]] for part in ("train", "test"))
        place = {name: row for row, name in enumerate(test["question_id"].to_pylist())}
        asked = test.take([place[name] for name in said["question_id"].to_pylist()])
        return judged(train, asked, {name: said[name].to_pylist() for name in said.column_names if name in SYSTEMS})

    def about(self, labelled: LabelledSet, hashes: dict[str, str]) -> dict[str, Any]:
        """Overlap of the test questions' images with train's.

        Args:
            hashes: image_id -> hash of its bytes.
        """
        parts = labelled.splits[self.split]
        names = [
            set(labelled.questions[parts[part]]["image_id"].to_pylist()) for part in ("train", "test") if part in parts
        ]
        if len(names) < 2:
            return {}
        content = [{hashes[name] for name in side} for side in names]
        by_content = sum(hashes[name] in content[0] for name in names[1])
        return {
            "test_images": len(names[1]),
            "in_train_by_id": len(names[0] & names[1]),
            "in_train_by_content": by_content,
            "stated": {key: value for key, value in parts.items() if key not in ("train", "test")},
        }


def answer(
    train: pa.Table, test: pa.Table, fit: tuple[Floats, Floats], ask: tuple[Floats, Floats], seed: int
) -> pa.Table:
    """One row a test question: what each system's answer is worth ("SYSTEM.MEASURE"), and what it was.

    Args:
        train, test: the questions (columns of `readers.QUESTIONS`, group and question_type).
        fit, ask: image and question vectors of train and of test, (n, d) each.

    Raises:
        TooLittle: train holds one answer, or one group.
    """
    answers = answers_of(train)
    groups, clusters = (np.unique(rows["group"].to_pylist(), return_inverse=True)[1] for rows in (train, test))
    if len(set(groups.tolist())) < 2:
        raise TooLittle("train holds one group; its penalty cannot be chosen on another")
    whole = _chosen(_features(*fit), answers, groups, seed)
    blind = _chosen(fit[1], answers, groups, seed)
    said = {
        "model": whole.predict(_features(*ask)),
        "question_only": blind.predict(ask[1]),
        "other_images": whole.predict(_features(ask[0][elsewhere(clusters, seed)], ask[1])),
    }
    return judged(train, test, said)


def answers_of(train: pa.Table) -> NDArray[np.str_]:
    """The answer of each training question, as they are compared. Raises TooLittle where they are all one."""
    answers = np.array([normal(text) for text in train["answer"].to_pylist()])
    if len(set(answers.tolist())) < 2:
        raise TooLittle(f"train holds one answer ({answers[0]!r}); there is nothing to choose from")
    return answers


def judged(train: pa.Table, test: pa.Table, said: Mapping[str, Sequence[str]]) -> pa.Table:
    """The rows of `answer`, from what each system said to the test questions; what train says most stands beside it."""
    answers, truth = answers_of(train), [normal(text) for text in test["answer"].to_pylist()]
    kinds, train_kinds = (np.array(rows["answer_type"].to_pylist()) for rows in (test, train))
    commonest = {kind: _commonest(answers[train_kinds == kind]) for kind in ("closed", "open")}
    columns: dict[str, Any] = {
        "sample_id": test["question_id"],
        "cluster": test["group"],
        "image_id": test["image_id"],
        "question": test["question"],
        "answer_type": test["answer_type"],
        "question_type": test["question_type"],
        "answer": pa.array(truth),
        "known": pa.array(np.isin(truth, answers).astype(float)),
    }
    for system, given in {**said, "majority": [commonest[kind] for kind in kinds]}.items():
        texts = [str(text) for text in given]
        pairs = list(zip(texts, truth, strict=True))
        columns[f"{system}.answer"] = pa.array(texts)
        columns[f"{system}.exact"] = pa.array([float(a == b) for a, b in pairs])
        if system == "model":
            columns["model.token_f1"] = pa.array([token_f1(a, b) for a, b in pairs])
            columns["model.bleu_1"] = pa.array([bleu_1(a, b) for a, b in pairs])
    return pa.table(columns)


def normal(text: str) -> str:
    """An answer as it is compared: case, runs of white space and the punctuation at its ends do not count; +, -, <, >
    and numbers do ("ER+" is not "ER-"), and no word is dropped ("hepatitis A" is not "hepatitis").
    """
    return re.sub(r"\s+", " ", text.lower()).strip(" .,;:!?\"'")


def tokens(text: str) -> list[str]:
    """Words of an answer: runs of letters, digits and what joins or signs them (2.5, t2-weighted, er+, p<0.05)."""
    return re.findall(r"[\w]+(?:[.\-/][\w]+)*[+\-]?|[<>=±%]", normal(text))


def token_f1(given: str, truth: str) -> float:
    """F1 of the words of two answers, counted with repetition (Rajpurkar et al. 2016, without dropping articles)."""
    left, right = Counter(tokens(given)), Counter(tokens(truth))
    shared = sum((left & right).values())
    return 2 * shared / (sum(left.values()) + sum(right.values())) if shared else 0.0


def bleu_1(given: str, truth: str) -> float:
    """BLEU of single words of one answer (Papineni et al. 2002): clipped precision times the brevity penalty; the
    figure is the mean over answers.
    """
    left, right = tokens(given), tokens(truth)
    if not left:
        return 0.0
    shared = sum((Counter(left) & Counter(right)).values())
    brevity = 1.0 if len(left) > len(right) else float(np.exp(1 - len(right) / len(left)))
    return brevity * shared / len(left)


def _yes_or_no(vectors: Vectors, test: pa.Table, images: Floats) -> list[float | None]:
    """Without training: is the image nearer to "QUESTION yes" or to "QUESTION no"? None for other questions."""
    rows = [
        row
        for row, (kind, text) in enumerate(
            zip(test["answer_type"].to_pylist(), test["answer"].to_pylist(), strict=True)
        )
        if kind == "closed" and normal(text) in ("yes", "no")
    ]
    out: list[float | None] = [None] * test.num_rows
    if rows:
        asked = test["question"].to_pylist()
        sides = [
            vectors.encode_text([f"{asked[row]} {word}" for row in rows]).astype(np.float64) for word in ("no", "yes")
        ]
        scores = np.stack([np.einsum("ij,ij->i", side, images[rows].astype(np.float64)) for side in sides], axis=1)
        truth = [normal(test["answer"][row].as_py()) == "yes" for row in rows]
        for row, right in zip(rows, choices(scores)[np.arange(len(rows)), np.array(truth, int)], strict=True):
            out[row] = float(right)
    return out


def _with_image(questions: pa.Table, images: dict[str, Floats]) -> pa.Table:
    there = [bool(np.isfinite(images[name]).all()) for name in questions["image_id"].to_pylist()]
    return questions.filter(pa.array(there, pa.bool_()))


def _features(image: Floats, question: Floats) -> Floats:
    return np.concatenate([image, question, image * question], axis=1)


def _chosen(features: Floats, answers: NDArray[Any], groups: NDArray[Any], seed: int) -> Pipeline:
    """The readout with the penalty that a held-back fifth of the training groups likes best, fitted on all of train."""
    fit, held = next(GroupShuffleSplit(1, test_size=0.2, random_state=seed).split(features, answers, groups))
    if len(set(answers[fit].tolist())) < 2:
        raise TooLittle("four fifths of train's groups hold one answer; more groups are needed")
    found = [
        (_ridge(p).fit(features[fit], answers[fit]).predict(features[held]) == answers[held]).mean() for p in PENALTIES
    ]
    return _ridge(PENALTIES[int(np.argmax(found))]).fit(features, answers)


def _ridge(penalty: float) -> Pipeline:
    return make_pipeline(StandardScaler(), RidgeClassifier(alpha=penalty))


def elsewhere(clusters: NDArray[Any], seed: int) -> NDArray[np.int64]:
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
