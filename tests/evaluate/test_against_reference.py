"""Ranks and metrics against a reference written here from the definitions: float64 brute force, scikit-learn, and plain
open_clip's vectors, for three CLIPs on both real sets and on data that trip others.
"""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import average_precision_score, brier_score_loss

from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.config import Evaluate
from biomedclip_ray.evaluate.bundles import Asked
from biomedclip_ray.evaluate.classify import ZeroShot
from biomedclip_ray.evaluate.features import Kept
from biomedclip_ray.evaluate.intervals import Clusters
from biomedclip_ray.evaluate.metrics import classification
from biomedclip_ray.evaluate.ranks import Keys, rank
from biomedclip_ray.evaluate.sets import load_set
from biomedclip_ray.evaluate.tasks import logits_of
from biomedclip_ray.images.image import as_pillow
from tests.clip.published import make_bert, make_published
from tests.clip.test_foreign import OPENAI, TEXT, VISION, _write
from tests.evaluate.test_ranks import check
from tests.evaluate.test_tasks import CLASSES, Known, labelled


def reference(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Every metric by its definition: an answer that ties counts by its part, curves by all pairs, in float64."""
    n, classes = logits.shape
    chosen = (logits == logits.max(axis=1, keepdims=True)).astype(float)
    chosen /= chosen.sum(axis=1, keepdims=True)
    there = [c for c in range(classes) if (labels == c).any()]
    recall = {c: chosen[labels == c, c].mean() for c in there}
    f1 = {c: 2 * chosen[labels == c, c].sum() / ((labels == c).sum() + chosen[:, c].sum()) for c in there}
    largest = logits.max(axis=1, keepdims=True)
    odds = np.exp(logits - largest)
    odds /= odds.sum(axis=1, keepdims=True)
    out = {
        "accuracy": chosen[np.arange(n), labels].mean(),
        "balanced_accuracy": np.mean(list(recall.values())),
        "macro_f1": np.mean(list(f1.values())),
        "weighted_f1": sum((labels == c).mean() * f1[c] for c in there),
    }
    hot = labels[:, None] == np.arange(classes)
    out["brier"] = ((odds - hot) ** 2).sum(axis=1).mean() / (2 if classes == 2 else 1)
    if 1 < len(there) == classes:
        np.testing.assert_allclose(
            out["brier"], brier_score_loss(labels, odds[:, 1] if classes == 2 else odds, labels=range(classes)), 1e-12
        )
    rest = [c for c in there if not hot[:, c].all()]
    if rest:
        shares = {c: _against_the_rest(logits, c) for c in rest}
        areas = {c: _pairs_won(hot[:, c], shares[c]) for c in rest}
        out["auroc"] = np.mean(list(areas.values())) if classes > 2 else areas[1]
        out["auprc"] = np.mean([average_precision_score(hot[:, c], shares[c]) for c in rest])
    return out


def _against_the_rest(logits: np.ndarray, c: int) -> np.ndarray:
    """Log-odds of a class, in a form that does not run into 1; beyond the twelfth digit they tie."""
    exact = logits.astype(np.longdouble)
    others = np.delete(exact, c, axis=1)
    most = others.max(axis=1)
    found = exact[:, c] - most - np.log(np.exp(others - most[:, None]).sum(axis=1))
    return np.asarray(found, np.float64).round(12)


def _pairs_won(truth: np.ndarray, scores: np.ndarray) -> float:
    above = scores[truth][:, None] - scores[~truth]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def agree(labels: np.ndarray, logits: np.ndarray) -> None:
    found = classification(labels, logits, Clusters.number(np.arange(len(labels))), 0, 0)
    expected = reference(labels, logits)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-12), name
    assert ("auroc" in found) == ("auroc" in expected)


@pytest.fixture(scope="module")
def clips(bundles, tmp_path_factory) -> dict[str, Path]:
    """One of ours, one in open_clip's own form with OpenAI's BPE, one in the published BiomedCLIP's."""
    bert, published = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("published")
    config = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
    return {
        "ours": bundles[0],
        "bpe": _write(tmp_path_factory.mktemp("bpe"), config, OPENAI),
        "published": make_published(published, make_bert(bert))[0],
    }


def plain_vectors(encoder: Encoder, folder: Path, kind: str, images: list[bytes], texts: list[str]):
    """Plain open_clip's; the published form cannot be loaded by it offline: its parts can."""
    if kind == "published":
        return encoder.encode_images(images), encoder.encode_text(texts)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    pixels = torch.stack([preprocess(as_pillow(data).convert("RGB")) for data in images])
    with torch.no_grad():
        image, text = model.eval().encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)
    return image.numpy(), text.numpy()


def thinned(source: Path, folder: Path, every: int) -> Path:
    """One row of test in so many: a tower of 224 pixels takes a minute for all."""
    folder.mkdir()
    shutil.copy(source / "dataset.json", folder)
    table = pq.read_table(source / "test.parquet")
    pq.write_table(table.take(list(range(0, table.num_rows, every))), folder / "test.parquet")
    return folder


@pytest.mark.parametrize("name", ["bccd_cells", "pneumonia_mnist"])
@pytest.mark.parametrize("kind", ["ours", "bpe", "published"])
def test_three_clips_on_both_real_sets(kind, name, clips, eval_sets, tmp_path):
    found = load_set(str(thinned(eval_sets / name, tmp_path / name, 8 if kind == "published" else 1)))
    encoder = Encoder.load(clips[kind], "cpu")
    asked = Asked(encoder, [found], str(tmp_path), Evaluate(bootstraps=20))
    figures = asked.first()[name]["zero_shot"]
    rows = asked.begun[name][1]["zero_shot"][1]
    labels, logits = rows["label"].to_numpy(), logits_of(rows)
    agree(labels, logits)
    assert figures["accuracy"]["value"] == pytest.approx(reference(labels, logits)["accuracy"], abs=1e-12)

    table = found.tables["test"]
    prompts = {
        label: [t.replace("{}", n) for n in found.class_names[label] for t in found.templates]
        for label in found.classes
    }
    texts = [text for own in prompts.values() for text in own]
    image, text = plain_vectors(encoder, clips[kind], kind, table.images.fetch(0, len(table.ids)), texts)
    vectors: Kept = asked.vectors[name]
    np.testing.assert_allclose(vectors.images("test"), image, atol=1e-5)
    np.testing.assert_allclose(vectors.encode_text(texts), text, atol=1e-5)
    starts = np.cumsum([0, *map(len, prompts.values())])
    means = np.stack([text[a:b].astype(float).mean(axis=0) for a, b in pairwise(starts)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(
        logits, encoder.logit_scale * image.astype(float) @ means.T, atol=encoder.logit_scale * 2e-5
    )

    belongs = np.repeat(np.arange(len(prompts)), [len(own) for own in prompts.values()])
    check(vectors.encode_text(texts), vectors.images("test"), {"strict": Keys(belongs, table.labels)}, 100)
    image_of = np.arange(len(image)) % len(image)  # many captions an image, CLIP_benchmark's definition
    many = vectors.encode_text(texts)[np.arange(3 * len(image)) % len(texts)]
    keys = Keys(np.tile(image_of, 3), image_of)
    check(many, vectors.images("test"), {"strict": keys}, 150)
    scores = vectors.images("test").astype(float) @ many.T.astype(float)
    ranks = rank(many, vectors.images("test"), {"strict": keys})["strict"]["image_to_text"]
    whole = ranks.tied == 0
    top = keys.text[np.argsort(-scores, axis=1, kind="stable")[:, :10]]
    hits = (top == image_of[:, None]).any(axis=1)
    sure = whole | (ranks.above + ranks.tied + ranks.right <= 10) | (ranks.above >= 10)
    np.testing.assert_array_equal(ranks.hits(10)[sure], hits[sure])


random = np.random.default_rng(5)
TRUTH = random.integers(0, 4, 240)
LOGITS = {
    "random": random.normal(size=(240, 4)) + 2 * np.eye(4)[TRUTH],
    "quantised": np.round(random.normal(size=(240, 4)) + np.eye(4)[TRUTH]),
    "duplicated": np.repeat(random.normal(size=(60, 4)), 4, axis=0),
    "a narrow cone": 20 + 1e-7 * (random.normal(size=(240, 4)) + np.eye(4)[TRUTH]),
    "collapsed": np.full((240, 4), 3.0),
    "far beyond a float32 softmax": 300 * (random.normal(size=(240, 4)) + np.eye(4)[TRUTH]),
}


@pytest.mark.parametrize("data", LOGITS)
@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_are_their_definitions_whatever_the_data(data, classes):
    agree(TRUTH % classes, LOGITS[data][:, :classes])
    agree(np.where(TRUTH % classes == 1, 0, TRUTH % classes), LOGITS[data][:, :classes])  # one class has no row
    agree(np.ones(240, int), LOGITS[data][:, :classes])  # all rows are of one class


def test_rows_without_a_vector_count_for_nothing():
    truth = [CLASSES[i] for i in TRUTH % 3]
    vectors = random.normal(size=(240, 3)).astype(np.float32)
    vectors[::7] = np.nan
    vectors[3, 1] = np.inf
    rows = ZeroShot().run(Known(test=vectors), labelled(truth))
    kept = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    assert rows["sample_id"].to_pylist() == [str(row) for row in kept]
    np.testing.assert_array_equal(rows["label"].to_numpy(), (TRUTH % 3)[kept])
    agree((TRUTH % 3)[kept], logits_of(rows))


def test_the_reference_itself_is_scikit_learns_where_nothing_ties():
    from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

    logits = LOGITS["random"]
    found = reference(TRUTH, logits)
    answers, odds = logits.argmax(axis=1), np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(TRUTH, answers), abs=1e-12)
    assert found["weighted_f1"] == pytest.approx(f1_score(TRUTH, answers, average="weighted"), abs=1e-12)
    assert found["auroc"] == pytest.approx(roc_auc_score(TRUTH, odds, multi_class="ovr"), abs=1e-12)
    assert json.dumps({name: float(value) for name, value in found.items()})
