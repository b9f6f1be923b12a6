"""Tasks give one row a sample; figures, comparisons and what is left out come from the rows. Vectors whose right answer
is known.
"""

import numpy as np
import pyarrow as pa
import pytest

from biomedclip_ray.evaluate.classify import Options, PromptPairs, ZeroShot
from biomedclip_ray.evaluate.compare import as_csv, as_html, as_latex, comparison, table
from biomedclip_ray.evaluate.measure import compare, estimates, holm, measure
from biomedclip_ray.evaluate.probe import LinearProbe, few_labels
from biomedclip_ray.evaluate.readers import Images
from biomedclip_ray.evaluate.sets import LabelledSet, Samples
from biomedclip_ray.evaluate.tasks import TooLittle
from biomedclip_ray.evaluate.vqa import answer, bleu_1, normal, token_f1, tokens

CLASSES = ["cell", "gel", "chart"]
NAMES = {"cell": ["cell"], "gel": ["gel", "blot of a gel"], "chart": ["chart"]}


class Known:
    """Vectors that are given; a text is the one-hot vector of the class that it names, or lies between all."""

    logit_scale = 50.0

    def __init__(self, **tables: np.ndarray) -> None:
        self.tables = tables

    def images(self, table: str) -> np.ndarray:
        return self.tables[table]

    def encode_text(self, texts) -> np.ndarray:
        hits = np.array([[name in text for name in CLASSES] for text in texts], np.float32)
        hits[hits.sum(axis=1) == 0] = 1
        return hits / np.linalg.norm(hits, axis=1, keepdims=True)


def noisy(labels: list[str], noise: float, seed: int = 0) -> np.ndarray:
    hot = np.array([[label == name for name in CLASSES] for label in labels], float)
    raw = hot + noise * np.random.default_rng(seed).normal(size=hot.shape)
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def samples(labels: list, groups: list[str] | None = None) -> Samples:
    ids = [str(row) for row in range(len(labels))]
    numbers = np.array([CLASSES.index(label) if label in CLASSES else 0 for label in map(str, labels)])
    images = Images(len(labels), lambda start, stop: [None] * (stop - start))
    return Samples(ids, groups or [f"row {row}" for row in ids], labels, numbers, images)


def labelled(test: list[str], train: list[str] | None = None, groups: list[str] | None = None) -> LabelledSet:
    tables = {"test": samples(test, groups)}
    if train is not None:
        tables["train"] = samples(train)
    return LabelledSet("here", "s", "classification", tables, {}, CLASSES, NAMES, ["a {}", "nothing but {}"])


ABOUT = {"classes": CLASSES, "common": 0}


def test_zero_shot_finds_the_class_that_an_image_lies_at_and_the_control_does_not():
    truth = CLASSES * 40
    vectors, task = Known(test=noisy(truth, 0.2)), ZeroShot()
    rows = task.run(vectors, labelled(truth))
    out = measure("classification", rows, 100, 0, ABOUT) | task.about(vectors, labelled(truth), rows)
    assert rows.num_rows == out["n"] == 120
    assert out["accuracy"]["value"] > 0.98
    assert out["accuracy"]["chance"] == pytest.approx(1 / 3)
    control = out["control_shuffled"]
    assert control["permutations"] == 20
    for name, level in (("accuracy", 1 / 3), ("balanced_accuracy", 1 / 3), ("auroc", 0.5)):
        assert control[name]["value"] == pytest.approx(level, abs=0.05)
        assert control[name]["low"] < level < control[name]["high"]
    assert np.sum(out["confusion"]) == 120
    assert set(out["accuracy_by_template"]) == {"a {}", "nothing but {}"}
    assert out["class_names"]["gel"] == ["gel", "blot of a gel"]


def test_a_vector_that_is_not_finite_leaves_its_row_out():
    truth = CLASSES * 10
    vectors = noisy(truth, 0.2)
    vectors[7] = np.nan
    rows = ZeroShot().run(Known(test=vectors), labelled(truth))
    assert "7" not in rows["sample_id"].to_pylist() and rows.num_rows == 29
    with pytest.raises(TooLittle, match="no image of the test table has a finite vector"):
        ZeroShot().run(Known(test=np.full((30, 3), np.nan)), labelled(truth))


def test_images_of_one_group_are_drawn_together():
    truth = ["cell"] * 60 + ["gel"] * 60
    vectors = noisy(["cell"] * 40 + ["gel"] * 20 + ["gel"] * 40 + ["cell"] * 20, 0.01)
    groups = [f"smear{row // 5}" for row in range(120)]
    alone, together = (
        measure("classification", ZeroShot().run(Known(test=vectors), labelled(truth, None, own)), 200, 0, ABOUT)[
            "accuracy"
        ]
        for own in (None, groups)
    )
    assert together["value"] == alone["value"] == pytest.approx(2 / 3)
    assert together["high"] - together["low"] > 1.5 * (alone["high"] - alone["low"])


def test_the_probe_learns_and_says_how_it_was_chosen():
    train, truth = CLASSES * 60, CLASSES * 40
    vectors, task = Known(train=noisy(train, 0.25, 1), test=noisy(truth, 0.25, 2)), LinearProbe()
    rows = task.run(vectors, labelled(truth, train))
    assert measure("classification", rows, 20, 0, ABOUT)["accuracy"]["value"] > 0.95
    assert task.about(vectors, labelled(truth, train), rows) == {"n_train": 180, "C": task.strength}
    few = few_labels(vectors, labelled(truth, train))
    shots = {point["at"]: point for point in few["shots"]}
    assert shots[32]["n"] == 96 and shots[32]["accuracy"]["mean"] > 0.9
    shares = {point["at"]: point for point in few["share"]}
    assert "of the 60 rows of class number 0" in shares[0.01].get("left_out", "of the 60 rows of class number 0")
    assert shares[1.0]["accuracy"]["sd"] == 0


@pytest.mark.parametrize(
    ("train", "sentence"), [(None, "no train table"), (["gel"] * 9, "one class"), ([], "no image of the train")]
)
def test_too_little_to_learn_from_is_a_sentence(train, sentence):
    vectors = Known(train=noisy(train or [], 0.1) if train else np.empty((0, 3)), test=noisy(CLASSES, 0.1))
    with pytest.raises(TooLittle, match=sentence):
        LinearProbe().run(vectors, labelled(CLASSES, train))


def test_one_group_in_train_is_a_sentence():
    train = CLASSES * 6
    found = labelled(CLASSES, train)
    found.tables["train"] = samples(train, ["patient 1"] * len(train))
    vectors = Known(train=noisy(train, 0.1), test=noisy(CLASSES, 0.1))
    with pytest.raises(TooLittle, match="train holds one group; nothing can be held back from it"):
        LinearProbe().run(vectors, found)
    rows, *fit = questions(30, 0)
    alone = rows.set_column(rows.column_names.index("group"), "group", pa.array(["one"] * 30))
    with pytest.raises(TooLittle, match="train holds one group"):
        answer(alone, rows, tuple(fit), tuple(fit), 0)


def test_labels_by_prompt_pairs_and_options_of_each_question():
    truth = [["cell"], ["gel", "chart"], [], ["chart"]] * 10
    hot = np.array([[name in own for name in CLASSES] for own in truth], float) + 0.01
    vectors = Known(test=(hot / np.linalg.norm(hot, axis=1, keepdims=True)).astype(np.float32))
    negative = {name: ["nothing"] for name in CLASSES}
    many = LabelledSet("here", "m", "multilabel", {"test": samples(truth)}, {}, CLASSES, NAMES, ["a {}"], negative)
    found = measure("multilabel", PromptPairs().run(vectors, many), 50, 0, {"classes": CLASSES})
    assert found["auroc"]["value"] > 0.95
    assert found["per_class"]["chart"]["n"] == 20 and found["per_class"]["chart"]["auroc"] > 0.95
    assert np.mean([own["auroc"] for own in found["per_class"].values()]) == pytest.approx(found["auroc"]["value"])
    assert np.mean([own["f1"] for own in found["per_class"].values()]) == pytest.approx(found["macro_f1"]["value"])
    one = samples(["cell", "gel"] * 10)
    asked = Samples(one.ids, one.clusters, one.values, one.labels, one.images, [["gel", "cell"]] * 20)
    options = LabelledSet("here", "o", "options", {"test": asked}, {})
    found = measure("options", Options().run(Known(test=noisy(one.values, 0.1)), options), 50, 0, {})
    assert (found["accuracy"]["value"], found["accuracy"]["chance"]) == (1, 0.5)


def two_bundles() -> dict[str, pa.Table]:
    truth = CLASSES * 40
    return {
        name: ZeroShot().run(Known(test=noisy(truth, noise, seed)), labelled(truth))
        for name, noise, seed in (("good", 0.3, 1), ("poor", 1.5, 2))
    }


def test_a_bundle_against_itself_is_exactly_nothing():
    rows = two_bundles()["good"]
    found = compare("classification", rows, rows, 100, 0, ABOUT, same=True)["metrics"]
    for figure in found.values():
        assert (figure["value"], figure["low"], figure["high"], figure["p"]) == (0, 0, 0, 1)


def test_a_comparison_is_paired_row_by_row():
    rows = two_bundles()
    shuffled = rows["poor"].take(np.random.default_rng(0).permutation(120)).slice(0, 119)
    found = compare("classification", rows["good"], shuffled, 200, 0, ABOUT, same=False)
    assert (found["n"], found["left_out"]) == (119, 1)
    figure = found["metrics"]["accuracy"]
    assert 0 < figure["low"] < figure["value"] < figure["high"] and figure["p"] < 0.01
    assert sum(found["answered"].values()) == pytest.approx(119)
    assert found["answered"]["only_first"] > found["answered"]["only_second"]


def test_bundles_are_compared_over_sets_with_holm_and_shown_in_three_forms():
    rows = two_bundles()
    tasks = {(name, "zero_shot"): ("classification", rows, ABOUT) for name in ("one", "two_&")}
    (pair,) = comparison(tasks, 100, 0)
    assert (pair["first"], pair["second"], pair["wins"], pair["losses"]) == ("good", "poor", 2, 0)
    assert all(entry["metrics"]["accuracy"]["holm"] >= entry["metrics"]["accuracy"]["p"] for entry in pair["sets"])
    figures = {name: {"n": 1} | _figures(table_) for name, table_ in rows.items()}
    measured = {name: {"zero_shot": own, "left_out": {"n": 0}} for name, own in figures.items()}
    lines = table({name: {"one": own, "two_&": own} for name, own in measured.items()})
    assert [line["set"] for line in lines] == ["one", "two_&", "macro over 2 sets"]
    assert as_csv(lines, ["good", "poor"]).splitlines()[1].startswith("one,zero_shot,accuracy,0.9")
    assert r"two\_\&" in as_latex(lines, ["good", "poor"]) and r"\textbf{" in as_latex(lines, ["good", "poor"])
    assert "<td>two_&amp;</td>" in as_html(lines, ["good", "poor"])


def _figures(rows: pa.Table) -> dict:
    return {"accuracy": measure("classification", rows, 50, 0, ABOUT)["accuracy"]}


def test_holm_leaves_undefined_values_out():
    assert holm({"a": 0.01, "b": 0.04, "c": float("nan"), "d": 0.03}) == pytest.approx(
        {"a": 0.03, "d": 0.06, "b": 0.06}
    )


def questions(number: int, seed: int):
    """Closed questions whose answer is in the image alone, evenly spread, and open ones whose answer is in the
    question.
    """
    random = np.random.default_rng(seed)
    yes, closed, thing = random.random(number) < 0.5, random.random(number) < 0.6, random.integers(4, size=number)
    rows = pa.table(
        {
            "question_id": [str(i) for i in range(number)],
            "image_id": [str(i) for i in range(number)],
            "question": [""] * number,
            "answer": [
                ("Yes" if y else "no ") if c else f"Thing {t}." for y, c, t in zip(yes, closed, thing, strict=True)
            ],
            "answer_type": ["closed" if c else "open" for c in closed],
            "question_type": ["presence" if c else "organ" for c in closed],
            "group": [str(i // 3) for i in range(number)],
        }
    )
    image = np.stack([np.where(yes, 1, -1), *random.normal(size=(3, number)) * 0.3], axis=1)
    asked = np.concatenate([np.where(closed, 1, -1)[:, None], (~closed)[:, None] * np.eye(4)[thing]], axis=1)
    return rows, np.pad(image, ((0, 0), (0, 1))), asked


def test_questions_that_the_image_answers_are_won_against_every_control():
    train, *fit = questions(900, 0)
    test, *ask = questions(300, 1)
    rows = answer(train, test, tuple(fit), tuple(ask), 0)
    rows = rows.append_column("zero_shot.exact", pa.nulls(300, pa.float64()))
    found = measure("vqa", rows, 200, 0, {})
    assert found["closed"]["model"]["exact"]["value"] > 0.95
    for control in ("question_only", "other_images", "majority"):
        assert found["closed"]["model_less"][control]["low"] > 0.2
    assert found["open"]["question_only"]["exact"]["value"] > 0.95
    assert found["open"]["model"]["token_f1"]["value"] > 0.9
    assert found["closed"]["n"] + found["open"]["n"] == found["all"]["n"] == 300
    assert found["all"]["answer_in_train"] == 1
    assert set(found["by_question_type"]) == {"presence", "organ"}
    assert "closed model exact" in estimates("vqa", rows, 10, 0, {})


def test_answers_are_compared_without_losing_what_they_say():
    assert normal(" Yes. ") == normal("yes") == "yes"
    assert normal("Right  lung") == "right lung"
    for left, right in (("hepatitis", "hepatitis A"), ("p>0.05", "p<0.05"), ("2.5 cm", "25 cm"), ("ER+", "ER-")):
        assert normal(left) != normal(right)
        assert token_f1(left, right) < 1
    assert token_f1("right lung", "left lung") == 0.5
    assert bleu_1("right lung", "left lung") == 0.5
    assert (bleu_1("no", "on"), bleu_1("", "yes"), bleu_1("yes", "yes")) == (0, 0, 1)
    assert tokens("T2-weighted, 2.5 cm") == ["t2-weighted", "2.5", "cm"]
