"""What a JATS figure says: its label and caption, its own and those of what holds it; which parts are shown, and in
which language. Pure.
"""

from __future__ import annotations

import copy
import re

from lxml import etree

from biomedclip_ray.jats.math import MATH
from biomedclip_ray.jats.text import PLAIN_CAPTION, text_of

GROUPS = ("fig-group", "table-wrap-group")
GRAPHIC = ("graphic", "media")
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"

# "print" and "print-only", but not "print online"; and what says of itself that it is not for display.
_NOT_SHOWN = re.compile(
    r"^(?:for[- ])?print(?:[- ]?(?:version|edition))?(?:[- ]?only)?$"
    r"|\bno[nt]?[- ]?(?:for[- ])?(?:display|web|online)|\bdisplay ?: ?none\b|\bhidden\b|\bsuppress"
)


def legend(fig: etree._Element, graphics: list[etree._Element]) -> tuple[str | None, str, str]:
    """(label, caption, plain caption) of a figure with these graphics: (None, "", "") where nothing is said.

    The captions of the groups around it stand before its own, those at its graphics behind; the label that it lacks is
    its graphic's or its group's. Where captions or their paragraphs are marked as of several languages, the plain
    caption is the English one, else the first.
    """
    labels = fig.findall("label")
    captions = _shown(fig.findall("caption"), own=True)
    for graphic in graphics:
        known = [*map(text_of, captions)]
        named = graphic.findall("label")
        here = [each for each in _shown(graphic.findall("caption"), own=True) if text_of(each) not in known]
        captions += [*named, *here] if labels and here else here
        labels = labels or named
    for lender in lenders(fig):
        captions[:0] = _shown(lender.findall("caption"), own=False)
        labels = labels + lender.findall("label")
    label = next(filter(None, map(text_of, labels)), None)
    caption = " ".join(filter(None, map(text_of, captions)))
    plain_caption = caption
    blocks = _of_one_language(captions)
    if blocks != captions or any(
        next(each.iter("sup", "inline-graphic", "list", MATH), None) is not None for each in captions
    ):
        plain_caption = " ".join(filter(None, (text_of(each, PLAIN_CAPTION) for each in blocks)))
    return label, caption, plain_caption


def lenders(fig: etree._Element) -> list[etree._Element]:
    """What a figure takes label, caption and rights from besides itself, the nearest first.

    That is every group around it, the figure that a captioned graphic stands in, and, where the figure has no caption
    of its own, the nearest figure around it that has one.
    """
    found = []
    inner = fig
    for around in fig.iterancestors("fig", *GROUPS):
        lends = not has_caption(inner) or inner.tag in GRAPHIC
        if around.tag != "fig":
            found.append(around)
        elif lends and has_caption(around):
            found.append(around)
            inner = around
    return found


def has_caption(element: etree._Element) -> bool:
    return any(text_of(caption) for caption in element.iterfind("caption"))


def _shown(captions: list[etree._Element], *, own: bool) -> list[etree._Element]:
    """Those meant for display; a figure's own where none is, for then they are all that it says."""
    shown = [caption for caption in captions if _is_shown(caption)]
    return list(map(_without_hidden, shown if shown or not own else captions))


def _is_shown(element: etree._Element) -> bool:
    if not element.attrib:
        return True
    marks = (element.get("specific-use"), element.get("content-type"), element.get("style"))
    return not any(mark and _NOT_SHOWN.search(mark.lower()) for mark in marks)


def _without_hidden(caption: etree._Element) -> etree._Element:
    """The caption without what in it is not meant for display: a copy where there is such a part."""
    if all(_is_shown(part) for part in caption.iter("{*}*")):
        return caption
    whole = copy.deepcopy(caption)
    for part in whole.iterdescendants("{*}*"):
        if not _is_shown(part):
            part.tag = "hidden"
    etree.strip_elements(whole, "hidden", with_tail=False)
    if not text_of(whole):
        return caption  # all that it says
    if language := _language(caption):
        whole.set(LANGUAGE, language)
    return whole


def _of_one_language(captions: list[etree._Element]) -> list[etree._Element]:
    """The captions or their paragraphs of one language, English before others; all of them where no two are marked."""
    if not any(each.get(LANGUAGE) for caption in captions for each in (caption, *caption)):
        return captions
    blocks = [
        block
        for caption in captions
        for block in (caption if any(child.get(LANGUAGE) for child in caption) else (caption,))
    ]
    languages = [_language(block) for block in blocks]
    if len(set(languages) - {""}) < 2:
        return captions
    chosen = "en" if "en" in languages else next(filter(None, languages))
    return [block for block, code in zip(blocks, languages, strict=True) if code in (chosen, "")]


def _language(element: etree._Element) -> str:
    """The language that an element or what is around it is marked with: "en" for "en-GB"; "" where nothing says so."""
    marked = element.get(LANGUAGE) or next(filter(None, (each.get(LANGUAGE) for each in element.iterancestors())), "")
    return marked.lower().replace("_", "-").partition("-")[0]
