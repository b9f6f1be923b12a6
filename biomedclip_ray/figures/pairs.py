"""A figure's image and its caption -> rows of PAIRS: the whole figure, and its panels with their subcaptions. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from biomedclip_ray.config import Preprocess
from biomedclip_ray.figures.captions import in_one_language, language, text_sha256, training_text
from biomedclip_ray.figures.kinds import figure_kind
from biomedclip_ray.figures.panels import Panel, split_panels
from biomedclip_ray.figures.subcaptions import subcaptions
from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.images.image import Prepared, Recipe, decode, prepare_crop, read

Row = dict[str, Any]


def whole_pair(pair_id: str, article: Row, figure: Row, prepared: Prepared, media: Row, mentions: int = 0) -> Row:
    """The pair of a whole figure: a row of PAIRS from rows of ARTICLES and its media, and the prepared image.

    Args:
        mentions: so many of the figure's mentions stand behind the caption in `text`, those of the body first.
    """
    return {
        "pair_id": pair_id,
        "panel": 0,
        "panel_label": None,
        "box": None,
        "media_name": media["key"].rsplit("/", 1)[1],
        "media_md5": media["md5"],
        **_around(article, figure),
        **_facts(prepared, _whole_text(figure, mentions)),
    }


def renewed(pair: Row, article: Row, figure: Row, mentions: int) -> Row:
    """A pair of an earlier product whose image is the same, with what article and figure say now; of a panel the
    caption must be the same.
    """
    row = pair | _around(article, figure)
    text = row["text"] if row["panel"] else _whole_text(figure, mentions)
    return row if text == row["text"] else row | _worded(row["image"], text)


def _around(article: Row, figure: Row) -> Row:
    """What a pair has from its article and its figure."""
    return {
        "article_id": article["article_id"],
        "pmcid": article["pmcid"],
        "part": article["part"],
        "figure_id": figure["figure_id"],
        "label": figure["label"],
        "is_table": figure["is_table"],
        "caption": figure["caption"],
        "mentions": [mention["sentence"] for mention in figure["mentions"]],
        "adapted": figure["adapted"],
        "license": figure["license"],
        "title": article["title"],
        "journal": article["journal"],
        "year": article["year"],
        "article_type": article["article_type"],
        "keywords": article["keywords"],
        "doi": article["doi"],
        "pmid": article["pmid"],
        "preprint": article["preprint"],
    }


def _whole_text(figure: Row, mentions: int) -> str:
    text = training_text(in_one_language(figure["plain_caption"]), figure["label"])
    in_order = sorted(figure["mentions"], key=lambda mention: not mention["in_body"])
    sentences = [training_text(mention["sentence"]) for mention in in_order[:mentions]]
    return " ".join(filter(None, [text, *sentences]))


def may_be_cut(figure: Row) -> bool:
    """A panel is a derivative work: no-derivatives licences forbid it; text mining only, or no known licence, does not
    allow it.
    """
    return figure["license"].startswith("CC") and not figure["license"].endswith("ND")


def panel_pairs(whole: Row, figure: Row, data: bytes, config: Preprocess) -> Iterator[Row | tuple[str, ImageError]]:
    """The pairs of a compound figure's panels, numbered from 1; nothing for a figure whose caption names no panels.

    Args:
        whole: the figure's own pair.
        data: the original file: panels are cut at its full size.

    Yields:
        a row of PAIRS, or the id of a panel that cannot be used and why (the figure's own where none can).
    """
    texts = subcaptions(in_one_language(figure["plain_caption"]))
    if not texts:
        return
    recipe = Recipe.of(config)
    try:
        full = read(data, recipe.limits)
    except ImageError as error:
        yield whole["pair_id"], error
        return
    panels = split_panels(full.pixels, tuple(texts))
    if len(panels) < 2:
        return
    for number, panel in enumerate(panels, start=1):
        panel_id = f"{whole['pair_id'].removesuffix('#0')}#{number}"
        try:
            prepared = prepare_crop(full, panel.box, recipe)
        except ImageError as error:
            yield panel_id, error
        else:
            yield whole | _panel_facts(panel_id, number, panel, prepared, texts, figure["label"])


def _panel_facts(
    panel_id: str, number: int, panel: Panel, prepared: Prepared, texts: dict[str, str], label: str | None
) -> Row:
    assert panel.label is not None  # split_panels gives the labels it was told
    return {
        "pair_id": panel_id,
        "panel": number,
        "panel_label": panel.label,
        "box": list(panel.box),
        **_facts(prepared, training_text(texts[panel.label], label)),
    }


def _facts(prepared: Prepared, text: str) -> Row:
    """What a pair has from its own image and its own text."""
    return prepared.columns() | _worded(prepared.jpeg, text)


def _worded(jpeg: bytes, text: str) -> Row:
    """What a pair has from its text, and from both."""
    kind, score = figure_kind(decode(jpeg), text)
    return {
        "text": text,
        "language": language(text),
        "text_sha256": text_sha256(text),
        "figure_kind": kind,
        "figure_kind_score": score,
    }
