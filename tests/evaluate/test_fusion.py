"""A fusion head reads its answer off the image: on unseen images it beats the question alone by far, and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.config import Evaluate, Fusion
from biomedclip_ray.evaluate.bundles import Asked
from biomedclip_ray.evaluate.fusion import STATE, InPlace, Job, fit
from biomedclip_ray.evaluate.sets import load_set
from biomedclip_ray.store.place import Place
from tests.evaluate.conftest import png

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}
SIDES = ("left", "right")


def quizzes(folder: Path, images: int = 90) -> Path:
    """Images of two halves; "which colour is the left half?", each colour equally often. A third of them is test."""
    random = np.random.default_rng(0)
    names, questions = list(COLOURS), {"train": [], "test": []}
    pictures = []
    for n in range(images):
        colours = names[n % 3], names[n // 3 % 3]
        pixels = random.integers(0, 40, (64, 64, 3))
        for half, colour in enumerate(colours):
            pixels[:, 32 * half : 32 * (half + 1)] += np.array(COLOURS[colour])
        pictures.append({"image_id": f"i{n}", "image": png(np.clip(pixels, 0, 255).astype(np.uint8))})
        for side, colour in zip(SIDES, colours, strict=True):
            about = {"image_id": f"i{n}", "answer": colour, "answer_type": "open", "group": f"g{n}"}
            about |= {"question_id": f"q{n}{side}", "question": f"which colour is the {side} half?"}
            questions["test" if n >= 2 * images // 3 else "train"].append(about)
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(pictures), folder / "images.parquet")
    for part, rows in questions.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")
    splits = {"disjoint": {"train": "train.parquet", "test": "test.parquet"}}
    about = {"name": "halves", "task": "vqa", "images": "images.parquet", "splits": splits}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order, whatever the machine: small steps gain nothing from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("tower_rate", "images", "epochs", "width"),
    [(0.0, 180, 20, 64), pytest.param(2e-3, 90, 12, 32, marks=pytest.mark.slow)],
)
def test_what_stands_in_the_image_is_read_off_it(tower_rate, images, epochs, width, bundles, tmp_path):
    labelled = load_set(str(quizzes(tmp_path / "halves", images)))
    fusion = Fusion(epochs=epochs, batch=16, width=width, layers=1, rate=4e-3, tower_rate=tower_rate)
    encoder, section = Encoder.load(bundles[0]), Evaluate(bootstraps=100, fusion=fusion)
    rows = Place(str(tmp_path / "rows"))
    shown, written = Asked(encoder, [labelled], str(tmp_path / "f"), section, uri=str(bundles[0])).all(rows)
    found = shown["halves"]["vqa_fusion"]["disjoint"]["all"]
    assert ("halves", "vqa_fusion disjoint") in written
    assert found["n"] == 2 * images // 3
    for control in ("question_only", "other_images", "majority"):
        gap = found["model_less"][control]
        assert gap["value"] > 0.2 and gap["low"] > 0, (control, gap)
    assert found["question_only"]["exact"]["value"] < 0.55  # answers are evenly spread within each question


def test_a_head_whose_towers_are_trained_leaves_the_bundles_own_alone(bundles, tmp_path):
    labelled = load_set(str(quizzes(tmp_path / "halves", 18)))
    encoder, section = Encoder.load(bundles[0]), Evaluate(bootstraps=100, fusion=Fusion(epochs=1, tower_rate=1e-2))
    before = encoder.encode_text(["a question"])
    asked = Asked(encoder, [labelled], str(tmp_path / "f"), section, uri=str(bundles[0]))
    shown, _ = asked.all(Place(str(tmp_path / "rows")))
    assert shown["halves"]["vqa_fusion"]["disjoint"]["all"]["n"] == 12
    np.testing.assert_array_equal(encoder.encode_text(["a question"]), before)


class Stops(InPlace):
    """Keeps two epochs, then the process dies."""

    def keep(self, epoch, state):
        super().keep(epoch, state)
        if epoch == 2:
            raise InterruptedError


def test_a_head_that_was_interrupted_goes_on_to_the_same_answers(bundles, tmp_path):
    labelled = load_set(str(quizzes(tmp_path / "halves", 18)))
    section = Evaluate(fusion=Fusion(epochs=4, batch=8, width=32))
    encoder = Encoder.load(bundles[0])
    jobs = [Job.of(str(bundles[0]), str(tmp_path / name), labelled, "disjoint", section) for name in ("one", "two")]
    fit(jobs[0], encoder, InPlace(Place(jobs[0].place)))
    with pytest.raises(InterruptedError):
        fit(jobs[1], encoder, Stops(Place(jobs[1].place)))
    assert Place(jobs[1].place).exists(STATE) and not jobs[1].done
    fit(jobs[1], encoder, InPlace(Place(jobs[1].place)))
    answers = [pq.read_table(Place(job.place).open("answers.parquet")) for job in jobs]
    assert answers[0].equals(answers[1])
