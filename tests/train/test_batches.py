"""Spans of the order become micro-batchs: the right rows, crops that depend on the position alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.images.image import decode
from biomedclip_ray.train.batches import Feed, crop, decode_block, read_span
from biomedclip_ray.train.order import Order
from biomedclip_ray.train.rows import find_rows, texts


@pytest.fixture(scope="module")
def feed(tmp_path_factory):
    pairs, corpus = tiny.products(tmp_path_factory.mktemp("feed"))
    rows = find_rows(pairs, corpus, "train")
    told = list(texts(pairs, corpus, "train"))
    order = Order(rows.chunk_rows, 40, 5)
    return Feed(pairs, rows, order, fit_tokenizer(told, 200, 16), 16, (0.9, 1.0), 5, 8), told


def test_a_span_holds_the_rows_of_the_order_in_its_order(feed):
    feed, told = feed
    span = read_span(feed, 40, 80)  # reaches into the second epoch, so some rows come twice
    rows = feed.order.rows(40, 80)
    assert span["position"].to_pylist() == list(range(40, 80))
    assert span["text"].to_pylist() == [told[row] for row in rows]
    assert span["group"].to_pylist() == feed.rows.group[rows].tolist()
    assert all(picture.as_py()[:2] == b"\xff\xd8" for picture in span["image"])


def test_a_block_is_the_same_however_the_span_was_cut(feed):
    feed, _ = feed
    whole = decode_block(feed, read_span(feed, 0, 40))
    part = decode_block(feed, read_span(feed, 16, 24))
    for name in ("position", "group", "pixels", "tokens"):
        assert np.array_equal(whole[name][16:24], part[name])
    assert whole["pixels"].shape == (40, 16, 16, 3) and whole["pixels"].dtype == np.uint8
    assert whole["tokens"].shape == (40, 16) and whole["tokens"].dtype == np.int32


def test_the_same_picture_is_cropped_anew_in_the_next_epoch(feed):
    feed, _ = feed
    size = feed.order.rows_per_epoch
    row = feed.order.rows(0, 1)[0]
    again = size + int(np.flatnonzero(feed.order.rows(size, 2 * size) == row)[0])
    first, second = (decode_block(feed, read_span(feed, p, p + 1))["pixels"][0] for p in (0, again))
    assert not np.array_equal(first, second)
    assert np.abs(first.astype(int) - second.astype(int)).mean() < 60


def test_without_a_crop_the_middle_square_is_taken():
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, 16:48] = 200
    assert crop(picture, 16, (1.0, 1.0), np.zeros(4)).min() == 200


@pytest.mark.parametrize("shape", [(8, 400), (400, 8), (1, 1), (37, 41)])
def test_a_crop_fits_any_picture_and_squeezes_none_beyond_four_to_three(shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    picture = np.stack([rows % 256, columns % 256, 0 * rows], -1).astype(np.uint8)
    for draw in np.random.default_rng(0).random((50, 4)):
        assert crop(picture, 24, (0.3, 1.0), draw).shape == (24, 24, 3)


def test_crops_keep_the_share_of_the_area_that_was_asked_for():
    columns = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    rows = columns.T
    picture = np.stack([columns, rows, 0 * rows], -1)
    for draw in np.random.default_rng(1).random((50, 4)):
        cut = crop(picture, 100, (0.25, 0.5), draw).astype(int)
        width, height = (np.ptp(cut[..., channel]) for channel in (0, 1))
        assert 0.2 < width * height / 200**2 < 0.55


def test_pixels_are_those_of_the_stored_picture(feed):
    feed, _ = feed
    block = decode_block(feed, read_span(feed, 0, 8))
    for pixels, jpeg in zip(block["pixels"], read_span(feed, 0, 8)["image"], strict=True):
        assert abs(int(decode(jpeg.as_py()).mean()) - int(pixels.mean())) < 25


def test_a_caption_with_the_paddings_own_token_keeps_its_length(feed):
    text = "three [PAD] round [PAD] cells"
    one, _ = feed
    block = decode_block(one, read_span(one, 0, 1).set_column(3, "text", [[text]]))
    ids = one.tokenizer([text])[0].tolist()
    assert block["length"].tolist() == [ids.index(one.tokenizer.eos_id) + 1]
    assert ids.count(one.tokenizer.pad_id) > 16 - ids.index(one.tokenizer.eos_id) - 1  # two of them are the caption's
