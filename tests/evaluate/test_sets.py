"""Labelled sets: reading, zero-shot, probe and questions, on vectors whose right answer is known, and on the real sets."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from biomedclip_ray.config import ConfigError
from biomedclip_ray.evaluate.classify import scores, zero_shot
from biomedclip_ray.evaluate.probe import linear_probe
from biomedclip_ray.evaluate.sets import LabelledSet, load_set
from biomedclip_ray.evaluate.vqa import normal, readout

CLASSES = ["cell", "gel", "chart"]


class WordEncoder:
    """Texts to one-hot vectors by the class that they name; a text that names none lies between all."""

    logit_scale = 50.0
    dimensions = 3

    def encode_text(self, texts: list[str]) -> np.ndarray:
        hits = np.array([[name in text for name in CLASSES] for text in texts], np.float32)
        hits[hits.sum(axis=1) == 0] = 1
        return hits / np.linalg.norm(hits, axis=1, keepdims=True)


def labelled(test: list[str], train: list[str], group: list[str | None] | None = None) -> LabelledSet:
    tables = {
        name: pa.table(
            {
                "image": [b""] * len(labels),
                "label": labels,
                "group": pa.array(group if name == "test" and group else [None] * len(labels), pa.string()),
            }
        )
        for name, labels in (("train", train), ("test", test))
    }
    names = {"cell": ["cell"], "gel": ["gel", "blot of a gel"], "chart": ["chart"]}
    return LabelledSet("here", "s", "classification", tables, {}, CLASSES, names, ["a {}", "nothing but {}"])


def noisy(labels: list[str], noise: float, seed: int = 0) -> np.ndarray:
    hot = np.array([[label == name for name in CLASSES] for label in labels], float)
    raw = hot + noise * np.random.default_rng(seed).normal(size=hot.shape)
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def test_zero_shot_finds_the_class_that_a_picture_lies_at_and_the_control_does_not():
    truth = CLASSES * 40
    out = zero_shot(WordEncoder(), labelled(truth, ["gel"]), noisy(truth, 0.2), draws=100, seed=0)
    assert out["accuracy"]["value"] > 0.98
    assert out["accuracy"]["chance"] == pytest.approx(1 / 3)
    assert out["control_shuffled"]["accuracy"]["value"] == pytest.approx(1 / 3, abs=0.12)
    assert out["control_shuffled"]["auroc"]["value"] == pytest.approx(0.5, abs=0.1)
    assert np.sum(out["confusion"]) == 120
    # it alone is enough to run it again
    assert (out["n"], out["classes"], out["templates"]) == (120, CLASSES, ["a {}", "nothing but {}"])
    assert out["class_names"]["gel"] == ["gel", "blot of a gel"]
    assert set(out["accuracy_by_template"]) == {"a {}", "nothing but {}"}


def test_scores_are_those_of_scikit_learn():
    random = np.random.default_rng(1)
    labels = random.choice(3, 200, p=[0.6, 0.3, 0.1])
    odds = random.dirichlet([1, 1, 1], 200)
    odds[np.arange(200), labels] += 0.3
    out = scores(labels, odds, np.arange(200), 0, draws=100, seed=0)
    answers = odds.argmax(axis=1)
    assert out["accuracy"]["value"] == pytest.approx(accuracy_score(labels, answers))
    assert out["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(labels, answers))
    one_against_rest = np.mean([roc_auc_score(labels == c, odds[:, c]) for c in range(3)])
    assert out["auroc"]["value"] == pytest.approx(one_against_rest)
    assert out["accuracy"]["chance"] == pytest.approx((labels == 0).mean())
    for figure in out.values():
        assert figure["low"] < figure["value"] < figure["high"]


def test_the_probe_learns_and_its_shuffled_control_does_not():
    train, truth = CLASSES * 60, CLASSES * 40
    out = linear_probe(labelled(truth, train), noisy(train, 0.25, 1), noisy(truth, 0.25, 2), draws=50, seed=0)
    assert (out["n_train"], out["n"]) == (180, 120)
    assert out["accuracy"]["value"] > 0.95
    control = out["control_shuffled"]["accuracy"]
    assert control["low"] < control["chance"] < control["high"]
    assert control["value"] == pytest.approx(1 / 3, abs=0.15)
    assert out["C"] in [10.0**power for power in range(-4, 4)]


def test_pictures_of_one_group_are_resampled_together():
    truth = ["cell"] * 60 + ["gel"] * 60
    groups = [f"smear{row // 20}" for row in range(120)]
    vectors = noisy(["cell"] * 40 + ["gel"] * 20 + ["gel"] * 40 + ["cell"] * 20, 0.01)
    alone = zero_shot(WordEncoder(), labelled(truth, ["gel"]), vectors, draws=200, seed=0)["accuracy"]
    together = zero_shot(WordEncoder(), labelled(truth, ["gel"], groups), vectors, draws=200, seed=0)["accuracy"]
    assert together["value"] == alone["value"] == pytest.approx(2 / 3)
    assert together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])


def questions(number: int, seed: int) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Yes/no questions whose answer is in the picture alone, and open ones whose answer is in the question."""
    random = np.random.default_rng(seed)
    yes, closed, thing = random.random(number) < 0.5, random.random(number) < 0.6, random.integers(4, size=number)
    table = pa.table(
        {
            "question_id": [str(i) for i in range(number)],
            "image_id": [str(i) for i in range(number)],
            "question": [""] * number,
            "answer": [
                ("Yes" if y else "no ") if c else f"Thing {t}." for y, c, t in zip(yes, closed, thing, strict=True)
            ],
            "answer_type": ["closed" if c else "open" for c in closed],
            "group": [str(i // 3) for i in range(number)],
        }
    )
    picture = np.stack([np.where(yes, 1, -1), *random.normal(size=(3, number)) * 0.3], axis=1)
    question = np.concatenate([np.where(closed, 1, -1)[:, None], (~closed)[:, None] * np.eye(4)[thing]], axis=1)
    return table, np.pad(picture, [(0, 0), (0, 1)]), question


def test_the_picture_helps_where_the_answer_is_in_the_picture_only():
    train, train_picture, train_question = questions(600, 0)
    test, picture, question = questions(300, 1)
    out = readout(train, test, (train_picture, train_question), (picture, question), 50, 0)
    assert out["closed"]["model"]["value"] > 0.95
    assert out["closed"]["question_only"]["value"] < 0.65
    assert out["closed"]["control_other_pictures"]["value"] < 0.65
    assert out["open"]["question_only"]["value"] > 0.95
    assert out["closed"]["n"] + out["open"]["n"] == out["all"]["n"] == 300
    assert out["answers"] == 6
    assert out["all"]["answer_in_train"] == 1


def test_answers_are_compared_without_case_and_ends():
    assert normal(" Yes. ") == normal("yes") == "yes"
    assert normal("Right  lung") == "right lung"


def write_set(folder: Path, labels: list[str]) -> None:
    about = {"name": "own", "task": "classification", "classes": ["a", "b"]}
    about["prompts"] = {"templates": ["{}"], "class_names": {"b": ["bee"], "a": ["ay"]}}
    (folder / "dataset.json").write_text(json.dumps(about))
    for name in ("train", "test"):
        table = pa.table({"image": [b"x"] * len(labels), "label": labels, "group": pa.nulls(len(labels), pa.string())})
        pq.write_table(table, folder / f"{name}.parquet")


def test_a_set_is_read_with_the_hashes_of_its_files(tmp_path):
    write_set(tmp_path, ["a", "b"])
    found = load_set(str(tmp_path))
    assert found.class_names == {"a": ["ay"], "b": ["bee"]}
    assert list(found.class_names) == found.classes
    assert found.files["test.parquet"] == hashlib.sha256((tmp_path / "test.parquet").read_bytes()).hexdigest()
    assert sorted(found.files) == ["dataset.json", "test.parquet", "train.parquet"]


def test_what_is_wrong_with_a_set_is_said_with_its_place(tmp_path):
    with pytest.raises(ConfigError, match=rf"evaluate\.sets: {tmp_path}/none holds no dataset\.json"):
        load_set(str(tmp_path / "none"))
    write_set(tmp_path, ["a", "c"])
    with pytest.raises(ConfigError, match="label 'c' is no class"):
        load_set(str(tmp_path))
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(ConfigError, match=r"holds no test\.parquet"):
        load_set(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("bccd_cells", {"train": 360, "test": 180}),
        ("pneumonia_mnist", {"train": 600, "test": 624}),
        ("vqa_rad", {"images": 314, "train": 1793, "test": 451, "train_disjoint": 1791, "test_disjoint": 453}),
    ],
)
def test_the_real_sets_are_read_whole(eval_sets, name, rows):
    found = load_set(str(eval_sets / name))
    assert {table: content.num_rows for table, content in found.tables.items()} == rows


def test_the_commonest_answer_of_vqa_rad_is_right_as_often_as_is_known(eval_sets):
    found = load_set(str(eval_sets / "vqa_rad"))
    blank = [np.ones((found.tables[name].num_rows, 2)) for name in ("train", "test")]
    out = readout(found.tables["train"], found.tables["test"], (blank[0],) * 2, (blank[1],) * 2, 20, 0)
    assert out["closed"]["model"]["chance"] == pytest.approx(133 / 272)
    assert (out["closed"]["n"], out["open"]["n"]) == (272, 179)
    assert out["open"]["answer_in_train"] == pytest.approx(68 / 179)


def test_a_probe_of_colours_alone_finds_blood_cells(eval_sets):
    from PIL import Image

    found = load_set(str(eval_sets / "bccd_cells"))

    def colours(table: str) -> np.ndarray:
        pixels = [
            np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float) / 255
            for data in found.tables[table]["image"].to_pylist()
        ]
        return np.array([[*image.mean(axis=(0, 1)), *image.std(axis=(0, 1))] for image in pixels])

    out = linear_probe(found, colours("train"), colours("test"), draws=50, seed=0)
    assert out["accuracy"]["value"] == pytest.approx(0.95, abs=0.03)
