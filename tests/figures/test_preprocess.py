"""Which file of a figure becomes its image: alternatives in order, several graphics each on their own."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import pytest
from PIL import Image

from biomedclip_ray.config import Preprocess
from biomedclip_ray.figures.preprocess import _graphics, _pairs
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.bucket import ObjectError
from biomedclip_ray.store.ledger import Ledger


def _picture(seed: int, size: tuple[int, int] = (280, 210)) -> bytes:
    sink = io.BytesIO()
    Image.effect_noise(size, 40 + seed).convert("RGB").save(sink, "PNG")
    return sink.getvalue()


class Memory:
    """A bucket of a few objects; a Reason in the place of bytes is how its object fails."""

    uri = "memory"

    def __init__(self, objects: dict[str, bytes | Reason]) -> None:
        self.objects = objects
        self.asked: list[str] = []

    def get(self, key: str, md5: str | None = None) -> bytes:
        self.asked.append(key)
        found = self.objects[key]
        if isinstance(found, Reason):
            raise ObjectError(found, key)
        return found

    def stream(self, key: str) -> BinaryIO:
        return io.BytesIO(self.get(key))

    def folders(self, prefix: str) -> list[str]:
        return []


def _article(*media: tuple[str | None, int]) -> dict[str, Any]:
    """An article with one figure: a key, or None where no file is there, and the graphic's number, for each file."""
    files = [
        {"name": "x", "key": key and f"PMC1.1/{key}", "md5": None, "found": key is not None, "graphic": graphic}
        for key, graphic in media
    ]
    figure = {
        "figure_id": "PMC1.1/F1",
        "label": "1",
        "is_table": False,
        "caption": "A.",
        "plain_caption": "A liver.",
        "mentions": [],
    }
    figure |= {"adapted": False, "license": "CC BY", "media": files}
    return dict.fromkeys(("title", "journal", "year", "article_type", "doi", "pmid", "preprint")) | {
        "article_id": "PMC1.1",
        "pmcid": "PMC1",
        "part": 0,
        "keywords": [],
        "figures": [figure],
    }


def _taken(objects: dict[str, bytes | Reason]) -> tuple[str | None, list[str], list[str]]:
    """The chosen file of a figure whose alternatives are these, the reasons in the ledger, and what was asked for."""
    bucket = Memory({f"PMC1.1/{name}": found for name, found in objects.items()})
    [graphic] = _graphics([_article(*((name, 0) for name in objects))])
    ledger = Ledger("preprocess")
    try:
        first: bytes | ObjectError = bucket.get(graphic.media[0]["key"])
    except ObjectError as error:
        first = error
    rows = _pairs(bucket, graphic, first, Preprocess(), ledger)
    assert ledger.counts["picture"] == (1, len(rows))
    asked = [key.removeprefix("PMC1.1/") for key in bucket.asked]
    return (rows[0]["media_name"] if rows else None), [row["reason"] for row in ledger.rows], asked


def test_the_first_alternative_that_decodes_is_taken_and_no_later_one_asked_for() -> None:
    good = _picture(0)
    assert _taken({"a.png": good, "b.png": _picture(1)}) == ("a.png", [], ["a.png"])
    assert _taken({"a.jpg": good[:700], "b.png": good, "c.png": good}) == ("b.png", [], ["a.jpg", "b.png"])
    assert _taken({"a.svg": b"<svg/>", "b.gif": Reason.MISSING_OBJECT, "c.png": good})[0] == "c.png"


def test_behind_a_broken_file_the_thumbnail_is_the_last_that_is_taken() -> None:
    good, thumbnail = _picture(0), _picture(0, (80, 60))
    cut = good[:700]
    assert _taken({"a.tif": cut, "a-small.jpg": thumbnail, "a.png": good})[0] == "a.png"
    assert _taken({"a.tif": cut, "b.jpg": thumbnail, "c.gif": _picture(0, (120, 90))})[0] == "c.gif"
    assert _taken({"a.tif": cut, "b.jpg": thumbnail})[0] == "b.jpg"
    # a small image that nothing stands before is what the article has
    assert _taken({"a.png": thumbnail, "b.png": good}) == ("a.png", [], ["a.png"])


def test_where_none_decodes_the_first_ones_reason_is_told() -> None:
    assert _taken({"a.svg": b"<svg/>", "b.jpg": _picture(0)[:700]})[:2] == (None, ["unknown_format"])


def test_an_outage_of_any_alternative_is_worth_another_run() -> None:
    assert _taken({"a.svg": b"<svg/>", "b.jpg": Reason.FETCH_FAILED})[:2] == (None, ["fetch_failed"])
    # the thumbnail that could be had is not taken: the next run would not ask for the image again
    assert _taken({"a.jpg": Reason.DEADLINE, "a.gif": _picture(0)}) == (None, ["deadline"], ["a.jpg"])


@pytest.mark.parametrize(
    "media, ids",
    [
        ([("a.jpg", 0)], ["PMC1.1/F1#0"]),
        ([("a.jpg", 0), ("a.gif", 0)], ["PMC1.1/F1#0"]),
        ([("a.jpg", 0), ("b.c.jpg", 1)], ["PMC1.1/F1/a#0", "PMC1.1/F1/b.c#0"]),
        ([("a.jpg", 0), ("a.png", 1)], ["PMC1.1/F1/a-1#0", "PMC1.1/F1/a-2#0"]),
        (
            [("a.jpg", 0), ("a.png", 1), ("a-1.jpg", 2)],
            ["PMC1.1/F1/a-1_#0", "PMC1.1/F1/a-2#0", "PMC1.1/F1/a-1#0"],
        ),
    ],
)
def test_each_graphic_is_a_picture_with_an_id_of_its_own(media: list[tuple[str, int]], ids: list[str]) -> None:
    assert [graphic.pair_id for graphic in _graphics([_article(*media)])] == ids


def test_an_alternative_without_a_file_stands_behind_those_that_have_one() -> None:
    [graphic] = _graphics([_article((None, 0), ("b.gif", 0))])
    assert [media["key"] for media in graphic.media] == ["PMC1.1/b.gif", None]
