"""What a pair says: caption, and mentions where they are asked for."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from biomedclip_ray.config import Preprocess
from biomedclip_ray.figures.pairs import may_be_cut, panel_pairs, whole_pair
from biomedclip_ray.images.image import Recipe, prepare
from biomedclip_ray.sample.plots import compound
from biomedclip_ray.schema import Reason

ARTICLE = dict.fromkeys(
    ("article_id", "pmcid", "title", "journal", "year", "article_type", "doi", "pmid", "preprint"), "x"
)
ARTICLE |= {"part": 0, "keywords": []}  # type: ignore[dict-item]
CAPTION = "Figure 2. Lungs of mice. (A) A radiograph of 10^4 cells. (B) A gel with lanes."


def _figure() -> dict[str, Any]:
    mentions = [("From the abstract.", False), ("As Figure 2  shows [], they grow.", True), ("They shrink.", True)]
    return {
        "figure_id": "x/F2",
        "label": "Figure 2.",
        "is_table": True,
        "caption": CAPTION,
        "plain_caption": CAPTION,
        "adapted": False,
        "license": "CC BY",
        "mentions": [{"sentence": sentence, "in_body": in_body} for sentence, in_body in mentions],
    }


def _pairs(mentions: int) -> list[dict[str, Any]]:
    """The whole figure and its panels."""
    sink = io.BytesIO()
    picture, _, _ = compound(np.random.default_rng(4), ["radiograph", "gel"])
    picture.save(sink, "PNG")
    config = Preprocess(mentions=mentions, panels=True)
    media = {"key": "x/f2.png", "md5": None}
    prepared = prepare(sink.getvalue(), Recipe.of(config))
    whole = whole_pair("x/F2#0", ARTICLE, _figure(), prepared, media, config.mentions)
    panels = list(panel_pairs(whole, _figure(), sink.getvalue(), config))
    assert all(isinstance(panel, dict) for panel in panels)
    return [whole, *panels]  # type: ignore[list-item]


@pytest.mark.parametrize(
    "mentions, added",
    [
        (0, ""),
        (1, " As Figure 2 shows, they grow."),
        (2, " As Figure 2 shows, they grow. They shrink."),
        (9, " As Figure 2 shows, they grow. They shrink. From the abstract."),
    ],
)
def test_mentions_stand_behind_the_caption_in_the_text_and_nowhere_else(mentions: int, added: str) -> None:
    whole, *panels = _pairs(mentions)
    assert whole["text"] == "Lungs of mice. (A) A radiograph of 10^4 cells. (B) A gel with lanes." + added
    assert whole["caption"] == CAPTION
    assert [pair["is_table"] for pair in (whole, *panels)] == [True] * (1 + len(panels))
    assert len(whole["mentions"]) == 3
    assert [panel["text"] for panel in panels] == [panel["text"] for panel in _pairs(0)[1:]]
    assert len(panels) == 2
    assert not any("grow" in panel["text"] for panel in panels)


def test_a_file_that_does_not_decode_at_full_size_is_a_reason_and_no_end() -> None:
    whole = _pairs(0)[0]
    [(name, error)] = panel_pairs(whole, _figure(), b"\xff\xd8\xff\xe0 no JPEG", Preprocess(panels=True))
    assert name == "x/F2#0"
    assert error.reason in (Reason.BROKEN_IMAGE, Reason.TRUNCATED_IMAGE)


@pytest.mark.parametrize(
    ("license_code", "may"),
    [
        ("CC0", True),
        ("CC BY", True),
        ("CC BY-NC-SA", True),
        *((code, False) for code in ("CC BY-ND", "CC BY-NC-ND", "TDM", "unknown")),
    ],
)
def test_only_what_a_licence_allows_is_cut(license_code: str, may: bool) -> None:
    assert may_be_cut({"license": license_code}) is may


def test_images_without_pixels_to_compare_are_not_asked_for() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 8"):
        Preprocess(short_side=7)
    with pytest.raises(ValueError, match="greater than 0"):
        Preprocess(min_side=0)


def test_the_smallest_pictures_that_may_be_asked_for_are_pairs() -> None:
    rng = np.random.default_rng(0)
    for width, height in ((8, 8), (8, 96), (96, 8), (9, 13)):
        sink = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(sink, "PNG")
        config = Preprocess(min_side=8, short_side=8, panels=True)
        media = {"key": "x/f2.png", "md5": None}
        whole = whole_pair("x/F2#0", ARTICLE, _figure(), prepare(sink.getvalue(), Recipe.of(config)), media)
        assert min(whole["width"], whole["height"]) == 8
        assert not [p for p in panel_pairs(whole, _figure(), sink.getvalue(), config) if isinstance(p, dict)]
