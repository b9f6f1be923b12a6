"""A JATS figure element -> a Figure: label, caption, pictures, rights, and what it takes from the group around it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lxml import etree

from biomedclip_ray.jats.licenses import stated_license
from biomedclip_ray.jats.math import MATH
from biomedclip_ray.jats.media import media_name
from biomedclip_ray.jats.text import SPOKEN, text_of

_HREF = "{http://www.w3.org/1999/xlink}href"
GROUPS = ("fig-group", "table-wrap-group")


@dataclass(frozen=True, slots=True)
class Mention:
    """A sentence that cites a figure; `in_body`: in an article's or sub-article's body, not in an abstract or appendix."""

    sentence: str
    in_body: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """One `fig`. `graphics` holds, for each picture, the names of its alternative files, best first.

    The captions of the groups around it stand before its own; the label that it lacks is its group's. Inside another
    figure, one without a caption takes that figure's. A group with pictures of its own, and a table, are figures too.
    `caption` is the XML's text, white space normalised ("" where there is none); `spoken` is the same as one would read
    it aloud: 10^4 for a superscript number over a number, superscript citations left out. `license` is the figure's
    own: None means the article's, "unknown" that its own permissions name no known licence. `adapted`: taken over from
    elsewhere, or its rights are not the article's.
    """

    xml_id: str | None
    label: str | None
    caption: str
    mentions: tuple[Mention, ...]
    license: str | None
    adapted: bool
    graphics: tuple[tuple[str, ...], ...]
    spoken: str = ""
    is_table: bool = False


_ADAPTED = re.compile(
    r"\b(?:adapted|reproduced|reprinted|republished|redrawn|reused)\b[^.;]{0,40}?\b(?:from|by|after|with|under|courtesy)\b"
    r"|\bmodified (?:and \w+ )?(?:from|after|with permission)\b[^.;]{0,80}?\b(?:et al|permission|ref|copyright|\d{4})\b"
    r"|\bwith (?:\w+ )?permission (?:from|of|by)\b|\bcourtesy of\b",
    re.IGNORECASE,
)
# Looked for first: the expression above takes 25 us a caption, these words 2 us.
_ADAPTED_WORDS = (
    "adapted",
    "reproduced",
    "reprinted",
    "republished",
    "redrawn",
    "reused",
    "modified",
    "permission",
    "courtesy",
)
_PICTURE_MEDIA = re.compile(r"\.(?:jpe?g|png|gif|tiff?|webp|bmp)$", re.IGNORECASE)
# What stands in these is no picture of the figure: glyphs in a caption, logos of a licence, icons in a table's cells.
_APART = frozenset(
    "fig fig-group table-wrap table-wrap-group table supplementary-material disp-formula inline-formula label caption"
    " alt-text attrib permissions".split()
)


def figure_of(fig: etree._Element, mentions: tuple[Mention, ...]) -> Figure:
    """The Figure of a `fig`, of a group with pictures of its own, or of a table with a picture."""
    label = None
    captions, credits, permissions = [], [], []
    graphics: list[tuple[str, ...]] = []
    for child in fig:
        tag = child.tag
        if tag == "label":
            label = label or text_of(child) or None
        elif tag == "caption":
            captions.append(child)
        elif tag in ("attrib", "copyright-statement"):
            credits.append(child)
        elif tag == "permissions":
            permissions.append(child)
        if next(child.iter("graphic", "media"), None) is not None:
            _graphics(child, graphics, permissions)
    for lender in lenders(fig):
        captions[:0] = lender.findall("caption")
        label = label or next(filter(None, map(text_of, lender.iterfind("label"))), None)
        credits += [child for child in lender if child.tag in ("attrib", "copyright-statement")]
        permissions = permissions or lender.findall("permissions")
    caption = " ".join(filter(None, map(text_of, captions)))
    spoken = caption
    if any(next(each.iter("sup", "inline-graphic", MATH), None) is not None for each in captions):
        spoken = " ".join(filter(None, (text_of(each, SPOKEN) for each in captions)))
    license_ = _own_license(permissions)
    credit = " ".join(map(text_of, (*credits, *permissions)))
    adapted = license_ == "unknown" or _taken_over(f"{caption} {credit}")
    is_table = fig.tag == "table-wrap"
    return Figure(fig.get("id"), label, caption, mentions, license_, adapted, tuple(graphics), spoken, is_table)


def lenders(fig: etree._Element) -> list[etree._Element]:
    """What a figure takes label, caption and rights from besides itself, the nearest first.

    That is every group around it, and, where it has no caption of its own, the nearest figure around it that has one.
    """
    found = []
    inner = fig
    for around in fig.iterancestors("fig", *GROUPS):
        if around.tag != "fig":
            found.append(around)
        elif not _has_caption(inner) and _has_caption(around):
            found.append(around)
            inner = around
    return found


def _has_caption(fig: etree._Element) -> bool:
    return any(text_of(caption) for caption in fig.iterfind("caption"))


def holds_picture(element: etree._Element) -> bool:
    """Does a group or a table have a picture of its own, outside its figures and cells?"""
    graphics: list[tuple[str, ...]] = []
    for child in element:
        _graphics(child, graphics, [])
    return bool(graphics)


def _taken_over(text: str) -> bool:
    low = text.lower()
    return any(word in low for word in _ADAPTED_WORDS) and _ADAPTED.search(text) is not None


def _graphics(element: etree._Element, graphics: list[tuple[str, ...]], permissions: list[etree._Element]) -> None:
    """Collect the pictures at and below an element, and permissions that stand at a graphic."""
    tag = element.tag
    if tag in ("graphic", "media"):
        if name := _picture(element):
            graphics.append((name,))
        permissions.extend(element.iterfind("permissions"))
    elif tag == "alternatives":
        forms = [form for child in element if child.tag not in _APART for form in child.iter("graphic", "media")]
        names = [(_rank(form, name), name) for form in forms if (name := _picture(form))]
        names.sort(key=lambda form: form[0])
        if names:
            graphics.append(tuple(dict.fromkeys(name for _, name in names)))
        for form in forms:
            permissions.extend(form.iterfind("permissions"))
    elif tag not in _APART:
        for child in element:
            _graphics(child, graphics, permissions)


def _picture(element: etree._Element) -> str | None:
    """The file name of a graphic; of a media element only where it is a picture, not a film or a spreadsheet."""
    href = element.get(_HREF) or ""
    if element.tag == "media" and element.get("mimetype") != "image" and not _PICTURE_MEDIA.search(href):
        return None
    return media_name(href) or None


def _rank(form: etree._Element, name: str) -> int:
    """Among alternatives: full pictures, then vector forms (not decoded here), then thumbnails."""
    about = f"{form.get('content-type')} {form.get('specific-use')} {name}".lower()
    if "thumb" in about or "scielo-" in about:
        return 3
    if name.lower().endswith(".gif"):
        return 2
    return 1 if name.lower().endswith((".svg", ".eps", ".pdf", ".ai")) else 0


def _own_license(permissions: list[etree._Element]) -> str | None:
    """The licence that a figure states for itself; "unknown" where it only says that the rights are somebody's."""
    for element in permissions:
        code, _ = stated_license(element)
        if code:
            return code
    return "unknown" if any(text_of(element) for element in permissions) else None
