"""A set of images and captions, and figures with and without what a bundle saw in training."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.config import Evaluate
from biomedclip_ray.evaluate import on_sets
from biomedclip_ray.evaluate.bundles import Asked
from biomedclip_ray.evaluate.features import Kept
from biomedclip_ray.evaluate.leakage import Copies
from biomedclip_ray.evaluate.sets import load_set
from biomedclip_ray.store.place import Place
from tests.evaluate.conftest import pixels, png

N = 24


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """Images with one to three captions each."""
    folder = tmp_path / "captions"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps({"name": "captions", "task": "retrieval"}))
    said = map(" ".join, permutations(["cell", "gel", "chart", "blot", "nothing"], 4))
    texts = [[next(said) for _ in range(1 + i % 3)] for i in range(N)]
    table = {"id": [f"i{i}" for i in range(N)], "image": [png(pixels(i % 3, i)) for i in range(N)], "text": texts}
    pq.write_table(pa.table(table), folder / "test.parquet")
    return folder


def test_captions_find_their_image_and_images_any_of_their_captions(captioned, bundles, tmp_path):
    encoder, labelled = Encoder.load(bundles[0]), load_set(str(captioned))
    asked = Asked(encoder, [labelled], str(tmp_path / "f"), Evaluate(bootstraps=50))
    found = asked.first()["captions"]["retrieval"]
    texts = labelled.questions["test"]
    image = asked.vectors["captions"].images("images").astype(float)
    text = asked.vectors["captions"].encode_text(texts["text"].to_pylist()).astype(float)
    owner = np.array([int(name[1:]) for name in texts["image_id"].to_pylist()])
    scores = text @ image.T
    rank = (scores > scores[np.arange(len(owner)), owner][:, None] + 1e-12).sum(axis=1)
    best = np.array([scores[owner == i, i].max() for i in range(N)])
    back = (best[:, None] + 1e-12 < scores.T).sum(axis=1)
    assert (found["images"], found["texts"], found["n"]) == (N, len(owner), len(owner))
    for way, ranks in (("text_to_image", rank), ("image_to_text", back)):
        figure = found[way]["recall@10"]
        assert figure["value"] == pytest.approx((ranks < 10).mean())
        assert figure["low"] <= figure["value"] <= figure["high"] < 1.0001
        assert found[way]["mrr"]["value"] == pytest.approx((1 / (ranks + 1)).mean())

    seen = np.arange(N) % 4 == 0

    def near(hashes, images):
        return Copies(np.ones(N, bool), seen)

    shown, _ = asked.all(Place(str(tmp_path / "rows")), near)
    copies, without = shown["captions"]["images_near_training"], shown["captions"]["without_near_training"]["retrieval"]
    assert copies["ids"] == [f"i{i}" for i in range(0, N, 4)] and copies["by_hash_alone"] == N
    kept = ~seen[owner]
    assert without["n"] == kept.sum() + (~seen).sum()
    assert without["text_to_image recall@10"] == pytest.approx((rank[kept] < 10).mean())
    assert without["image_to_text recall@10"] == pytest.approx((back[~seen] < 10).mean())


def test_images_made_worse_are_of_the_whole_set_and_chance_is_its_commonest_class(
    bundles, tmp_path, about, monkeypatch
):
    """A set that is sorted by class, three of four images of the last; what the clean ones give is asked again here."""
    monkeypatch.setattr(on_sets, "CORRUPTED", 12)
    folder = tmp_path / "sorted"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(about))
    labels = [0] * 3 + [1] * 3 + [2] * 18
    table = {"image": [png(pixels(c, i)) for i, c in enumerate(labels)], "label": [about["classes"][c] for c in labels]}
    pq.write_table(pa.table(table), folder / "test.parquet")
    encoder, labelled = Encoder.load(bundles[0]), load_set(str(folder))
    vectors = Kept(encoder, str(tmp_path / "f"), labelled)
    found = on_sets.robustness(vectors, labelled)
    rows = np.arange(0, 24, 2)
    assert (found["n"], found["chance"]) == (12, pytest.approx(np.mean(np.array(labels)[rows] == 2)))
    logits = on_sets.ZeroShot().logits(vectors, vectors.images("test")[rows], labelled, labelled.templates)
    assert found["clean"] == pytest.approx((logits.argmax(axis=1) == np.array(labels)[rows]).mean())
    assert {len(one["accuracy"]) for one in found["kinds"].values()} == {5}
