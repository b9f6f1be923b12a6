"""What a fusion head is given is made once: another split, seed or recipe asks no tower again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.config import Fusion
from biomedclip_ray.evaluate.heads import Answerer
from biomedclip_ray.evaluate.sets import load_set
from biomedclip_ray.evaluate.states import States, sides
from biomedclip_ray.store.place import Place
from tests.evaluate.test_fusion import quizzes


def given(folder: Path, encoder: Encoder, out: Path, trained: bool = False):
    scratch = out / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return sides(load_set(str(folder)), "disjoint", States(encoder, Place(str(out))), trained, scratch)


def test_states_are_made_once_and_what_cannot_be_read_is_left_out(bundles, tmp_path):
    folder = quizzes(tmp_path / "halves", 90)
    images = pq.read_table(folder / "images.parquet").to_pylist()
    images[40]["image"] = b"no image"
    pq.write_table(pq.read_table(folder / "images.parquet").from_pylist(images), folder / "images.parquet")
    encoder = Encoder.load(bundles[0])
    train, test = given(folder, encoder, tmp_path / "kept")
    assert (len(train.rows), len(test.rows)) == (118, 60)
    assert len(train.question) == 2  # each question once, however many images it is asked of
    for tower in encoder.model.parameters():
        torch.nn.init.constant_(tower, torch.nan)
    again, _ = given(folder, encoder, tmp_path / "kept")
    rows = np.arange(0, 118, 7)
    for one, other in zip(train.batch(rows, encoder.device), again.batch(rows, encoder.device), strict=True):
        assert torch.equal(one, other) and torch.isfinite(one.float()).all()


def test_a_batch_is_as_long_as_its_longest_question(bundles, tmp_path):
    encoder = Encoder.load(bundles[0])
    train, _ = given(quizzes(tmp_path / "halves", 18), encoder, tmp_path / "kept")
    lengths = (train.ids[train.asked] != encoder.tokenizer.pad_id).sum(dim=1).numpy()
    for row in (lengths.argmin(), lengths.argmax()):
        ids, question, patches = train.batch(np.array([row]), encoder.device)
        assert ids.shape[1] == question.shape[1] == lengths[row]
        assert patches.shape == (1, 64, 64)


def test_a_head_is_no_wider_than_its_towers():
    heads = [Answerer(torch.nn.Identity(), 0, (64, 70), 5, Fusion(width=width)).head for width in (32, 256)]
    assert [head.answer.in_features for head in heads] == [32, 68]
