"""A batch in pieces beside each other is the same batch."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from biomedclip_ray.clip.bundle import load_bundle
from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.clip.streams import Streams, streams
from biomedclip_ray.clip.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("items", "threads", "pieces"),
    [(1, 4, 1), (4, 4, 4), (5, 4, 1), (3, 2, 1), (9, 2, 2), (24, 2, 2), (24, 32, 8), (64, 1, 1), (0, 4, 1), (7, 7, 7)],
)
def test_pieces_fill_the_threads_or_the_batch_stays_whole(items: int, threads: int, pieces: int) -> None:
    assert streams(items, threads) == pieces


def test_each_piece_has_its_share_of_the_threads_and_the_caller_all_of_them_again() -> None:
    seen: dict[int, tuple[int, int, bool]] = {}

    def work(rows: slice) -> np.ndarray:
        mine = np.arange(8)[rows]
        seen[int(mine[0])] = (torch.get_num_threads(), threading.get_ident(), torch.is_inference_mode_enabled())
        return np.stack([mine, mine**2], axis=1).astype(np.float32)

    torch.set_num_threads(16)
    answer = Streams()(work, 8, 2)
    np.testing.assert_array_equal(answer, [[n, n * n] for n in range(8)])
    assert [(threads, inferred) for threads, _, inferred in seen.values()] == [(2, True)] * 8
    assert threading.get_ident() not in {thread for _, thread, _ in seen.values()}
    assert torch.get_num_threads() == 16 and not torch.is_inference_mode_enabled()


def test_what_a_piece_raises_is_raised_and_the_threads_are_the_callers_again() -> None:
    def work(rows: slice) -> np.ndarray:
        raise RuntimeError(f"row {rows.start}")

    with pytest.raises(RuntimeError, match="row 0"):
        Streams()(work, 4, 2)
    assert torch.get_num_threads() == 4


def test_vectors_are_those_of_one_batch_in_the_order_of_the_inputs(
    folder: Path, pictures: list[Image.Image], captions: list[str]
) -> None:
    encoder = Encoder.load(folder, "cpu")
    images = [pictures[n % 7].rotate(n) for n in range(20)]
    texts = [caption * (n % 3 + 1) for n, caption in enumerate(captions[:40])]
    in_pieces = encoder.encode_images(images), encoder.encode_text(texts)
    torch.set_num_threads(1)
    whole = encoder.encode_images(images), encoder.encode_text(texts)
    np.testing.assert_allclose(in_pieces[0], whole[0], atol=2e-6)
    np.testing.assert_allclose(in_pieces[1], whole[1], atol=2e-6)


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
def test_texts_of_all_lengths_go_through_one_causal_tower_at_the_same_time(
    folder: Path, tokenizer: Tokenizer, kind: type[open_clip.CLIP]
) -> None:
    end = tokenizer.vocab_size - 1
    text = {"context_length": 77, "vocab_size": tokenizer.vocab_size, "width": 64, "heads": 2, "layers": 2}
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}
    model = kind(128, vision, {**text, "pool_type": "eos", "eos_id": end}).eval()
    encoder = Encoder(load_bundle(folder)._replace(model=model), "cpu")
    ids = np.random.default_rng(0).integers(5, end, (60, 77))
    ids[np.arange(60), np.arange(60) + 8] = end
    torch.set_num_threads(1)
    whole = encoder.encode_ids(ids)
    with ThreadPoolExecutor(4) as callers:
        for turn, found in enumerate(
            callers.map(lambda turn: encoder.encode_ids(np.roll(ids, turn, axis=0)), range(20))
        ):
            np.testing.assert_allclose(found, np.roll(whole, turn, axis=0), atol=2e-6)
