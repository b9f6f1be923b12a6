"""Metrics against scikit-learn to 1e-12, ties at their expectation, and the places where libraries go wrong."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from biomedclip_ray.evaluate.intervals import Clusters
from biomedclip_ray.evaluate.metrics import (
    bins_of,
    classification,
    confusion,
    log_odds,
    multilabel,
    per_class,
    probabilities,
    reliability,
    temperature,
    top_k,
)


def data(classes: int, n: int = 300, seed: int = 0):
    random = np.random.default_rng(seed)
    labels = random.choice(classes, n)
    logits = random.normal(size=(n, classes))
    logits[np.arange(n), labels] += 1
    return labels, logits, Clusters.number(random.integers(0, 60, n))


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_values_are_scikit_learns(classes):
    labels, logits, clusters = data(classes)
    found = {name: one.value for name, one in classification(labels, logits, clusters, 20, 0).items()}
    answers, scores, odds = logits.argmax(axis=1), log_odds(logits), probabilities(logits)
    hot = labels[:, None] == np.arange(classes)
    expected = {
        "accuracy": accuracy_score(labels, answers),
        "balanced_accuracy": balanced_accuracy_score(labels, answers),
        "macro_f1": f1_score(labels, answers, average="macro"),
        "weighted_f1": f1_score(labels, answers, average="weighted"),
        "auprc": np.mean([average_precision_score(hot[:, c], scores[:, c]) for c in range(classes)]),
        "brier": brier_score_loss(labels, odds if classes > 2 else odds[:, 1], labels=range(classes)),
    }
    if classes == 2:
        expected["auroc"] = roc_auc_score(labels, odds[:, 1])
    else:
        expected["auroc"] = roc_auc_score(labels, odds, multi_class="ovr")
        expected["auroc_pooled"] = roc_auc_score(hot.ravel(), odds.ravel())
    if classes > 5:
        expected["top_5"] = top_k_accuracy_score(labels, logits, k=5)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    assert set(found) == {*expected, "ece"}


def test_tied_scores_count_half_in_curves_and_their_share_in_answers():
    labels, logits, clusters = data(3)
    logits = np.round(logits)
    found = classification(labels, logits, clusters, 20, 0)
    scores = log_odds(logits)
    for name, by_hand in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        expected = np.mean([by_hand(labels == c, scores[:, c]) for c in range(3)])
        assert found[name].value == pytest.approx(expected, abs=1e-12)
    flat = np.zeros((90, 3))
    found = classification(np.arange(90) % 3, flat, Clusters.number(np.arange(90)), 20, 0)
    assert found["accuracy"].value == pytest.approx(1 / 3)
    assert found["auroc"].value == 0.5
    assert top_k(np.array([0]), np.zeros((1, 10)), 5)[0] == 0.5


def test_each_draw_is_the_metric_of_its_rows():
    labels, logits, clusters = data(3, 90)
    found = classification(labels, logits, clusters, 5, 7)
    counts = np.concatenate(list(clusters.draws(5, 7)))
    for number, weights in enumerate(counts):
        rows = np.repeat(np.arange(90), weights[clusters.of])
        again = classification(labels[rows], logits[rows], Clusters.number(np.arange(len(rows))), 0, 0)
        for name, one in found.items():
            assert one.drawn[number] == pytest.approx(again[name].value, abs=1e-12), name


def test_logits_beyond_float32s_softmax_keep_their_order():
    logits = np.stack([np.zeros(40), 100 + np.arange(40.0)], axis=1)
    labels = (np.arange(40) >= 20).astype(int)
    assert classification(labels, logits, Clusters.number(np.arange(40)), 10, 0)["auroc"].value == 1


def test_a_class_without_rows_is_left_out_and_nothing_is_nan():
    labels, logits, clusters = data(3)
    four = np.concatenate([logits, np.full((300, 1), -9.0)], axis=1)
    found = classification(labels, four, clusters, 50, 0)
    assert found["auroc"].value == pytest.approx(
        classification(labels, logits, clusters, 0, 0)["auroc"].value, abs=1e-3
    )
    for name, one in found.items():
        figure = one.figure(clusters)
        assert all(np.isfinite(figure[key]) for key in ("value", "low", "high")), name
        assert figure["low"] <= figure["value"] <= figure["high"], name
        assert figure["low"] < figure["high"], name
    assert list(per_class(labels, four, ["a", "b", "c", "nobody"])) == ["a", "b", "c"]


def test_one_class_alone_has_an_accuracy_and_no_curve():
    found = classification(np.ones(10, int), np.eye(2)[[1] * 10], Clusters.number(np.arange(10)), 20, 0)
    assert found["accuracy"].value == 1
    assert "auroc" not in found


def test_confidences_on_an_edge_belong_to_the_bin_below():
    assert bins_of(np.array([0.0, 1 / 15, 1 / 15 + 1e-6, 0.2, np.float32(0.2), 1.0])).tolist() == [0, 0, 1, 2, 2, 14]


def test_the_reliability_curve_adds_up_to_ece():
    labels, logits, clusters = data(2)
    curve = reliability(labels, logits)
    gap = sum(bin_["n"] * abs(bin_["accuracy"] - bin_["confidence"]) for bin_ in curve) / 300
    assert classification(labels, logits, clusters, 0, 0)["ece"].value == pytest.approx(gap, abs=1e-12)
    assert sum(bin_["n"] for bin_ in curve) == np.sum(confusion(labels, logits)) == 300


def test_a_temperature_cools_what_is_too_sure_and_none_is_found_without_a_wrong_answer():
    labels, logits, _ = data(3)
    assert temperature(labels, 5 * logits) == pytest.approx(5 * temperature(labels, logits), rel=1e-3)
    assert temperature(labels, 1000 * logits) == pytest.approx(10, rel=1e-3)  # the bound
    assert temperature(labels, np.eye(3)[labels]) is None


def test_labels_by_prompt_pairs_have_curves_of_their_own():
    random = np.random.default_rng(0)
    truths = random.random((200, 3)) < [0.3, 0.5, 0.0]
    scores = random.normal(size=(200, 3)) + truths
    found = multilabel(truths, scores, Clusters.number(np.arange(200) // 2), 50, 0)
    for name, by_hand in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        expected = np.mean([by_hand(truths[:, c], scores[:, c]) for c in range(2)])
        assert found[name].value == pytest.approx(expected, abs=1e-12)
    f1 = np.mean([f1_score(truths[:, c], scores[:, c] > 0) for c in range(2)])
    assert found["macro_f1"].value == pytest.approx(f1, abs=1e-12)
