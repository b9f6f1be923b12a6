"""Texts that vary: drawn by the position alone, in the shares that are asked for."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import ConfigError, parse
from biomedclip_ray.train.batches import Feed, decode_block, read_span
from biomedclip_ray.train.order import Order
from biomedclip_ray.train.rows import find_rows, texts
from biomedclip_ray.train.texts import drawn_texts
from biomedclip_ray.train.train import _content

CAPTION = "Sections of liver. (A) Control animals at day 3. (B) Treated animals at day 9."
SENTENCES = ["The livers of treated mice were pale.", "Fig. 2 shows all livers."]
ROW = {"text": CAPTION, "panel": 0, "mentions": SENTENCES}


def _drawn(row: dict[str, object], weights: dict[str, float], n: int = 6000, seed: int = 3) -> list[str]:
    rows = pa.Table.from_pylist(
        [row] * n, pa.schema({"text": pa.string(), "panel": pa.int16(), "mentions": pa.list_(pa.string())})
    )
    return drawn_texts(rows, np.arange(n), seed, weights)


def test_each_kind_comes_as_often_as_its_weight_says_and_each_text_of_a_kind_as_often() -> None:
    counts = Counter(_drawn(ROW, {"caption": 2, "mentions": 1, "panels": 1}))
    own = counts.pop(CAPTION)
    assert own == pytest.approx(3000, abs=150)
    assert set(SENTENCES) < set(counts)
    panels = sorted(set(counts) - set(SENTENCES))
    assert panels == ["Sections of liver. Control animals at day 3.", "Sections of liver. Treated animals at day 9."]
    assert all(count == pytest.approx(750, abs=90) for count in counts.values())


@pytest.mark.parametrize(
    "row",
    [
        {"text": "One field of cells", "panel": 0, "mentions": []},
        ROW | {"panel": 2},
        ROW | {"mentions": None, "text": "Cells"},
    ],
)
def test_a_pair_without_the_kind_that_was_drawn_has_its_caption(row: dict[str, object]) -> None:
    assert set(_drawn(row, {"mentions": 1, "panels": 3}, 200)) == {row["text"]}


def test_a_position_has_the_same_text_however_the_sequence_is_cut_and_another_in_the_next_epoch(tmp_path: Path) -> None:
    pairs, corpus = tiny.products(tmp_path, mentions=3)
    rows = find_rows(pairs, corpus, "train")
    told = list(texts(pairs, corpus, "train"))
    order = Order(rows.chunk_rows, 40, 5)
    plain = Feed(pairs, rows, order, fit_tokenizer(told, 200, 16), 16, (0.9, 1.0), 5, 8)
    feed = replace(plain, texts={"caption": 1.0, "mentions": 1.0})
    whole = read_span(feed, 0, 80)["text"].to_pylist()
    for start, stop in ((0, 8), (16, 24), (40, 48), (72, 80)):  # what any number of workers is dealt, from any step on
        assert read_span(feed, start, stop)["text"].to_pylist() == whole[start:stop]
    block = decode_block(feed, read_span(feed, 16, 24))
    np.testing.assert_array_equal(block["tokens"], feed.tokenizer(whole[16:24]))
    captions = read_span(plain, 0, 80)["text"].to_pylist()
    sentences = sum(one.startswith("cited") for one in whole)
    assert 25 < sentences < 55
    assert all(
        one in (caption, *(f"cited {n}: {caption}" for n in range(3)))
        for one, caption in zip(whole, captions, strict=True)
    )
    size, visits = order.rows_per_epoch, 20
    row = order.rows(0, 1)[0]
    at = [
        epoch * size + int(np.flatnonzero(order.rows(epoch * size, (epoch + 1) * size) == row)[0])
        for epoch in range(visits)
    ]
    assert len({read_span(feed, place, place + 1)["text"][0].as_py() for place in at}) == 4


def test_the_fingerprint_holds_texts_that_vary_and_not_their_absence(tmp_path: Path) -> None:
    pairs, corpus = tiny.products(tmp_path)
    plain = _content(tiny.config(tmp_path), pairs, corpus)
    assert "texts" not in plain["train"]
    assert _content(tiny.config(tmp_path, texts={"caption": 1, "mentions": 2}), pairs, corpus) != plain


@pytest.mark.parametrize("given", [{"captions": 1}, {"caption": 0}, {"mentions": -1}])
def test_unknown_names_and_weights_of_nothing_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="train.texts"):
        parse({"root": "r", "train": {"texts": given}}, "test")
