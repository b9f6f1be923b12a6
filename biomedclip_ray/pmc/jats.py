"""JATS XML -> an article with its figures: labels, captions, graphics, licences, and the sentences that cite them. Pure.

Nothing is lost and nothing raises but `JatsError`: figures without caption, label, id or graphic are returned as they
are, and the stage decides.

Trade-off: one pass over the tree picks up every `fig` and `xref`, and text is only walked where a figure is or is
cited. With the reference lists cut out (`jats_xml.py`) everything takes 1.4 times what lxml needs for the tree alone
(benchmarks/jats.py); walking the cited paragraphs in Python is the largest share of what comes on top.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lxml import etree

from biomedclip_ray.pmc.jats_math import MATH
from biomedclip_ray.pmc.jats_text import CAPTION, SPOKEN, STOPS, TITLE, citing_sentences, text_of
from biomedclip_ray.pmc.jats_xml import JatsError, article_element, replace_entity
from biomedclip_ray.pmc.licenses import stated_license
from biomedclip_ray.pmc.media import media_name

__all__ = ["Article", "Figure", "JatsError", "Mention", "parse_article", "parse_figures"]

_HREF = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True, slots=True)
class Mention:
    """A sentence that cites a figure; `in_body`: in an article's or sub-article's body, not in an abstract or appendix."""

    sentence: str
    in_body: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """One `fig`; what it lacks of label and caption is its `fig-group`'s. `graphics` holds, for each picture, the names of its alternative files, best first.

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


@dataclass(frozen=True, slots=True)
class Article:
    """An article's facts and all its figures in document order, sub-articles' and appendices' too."""

    title: str | None
    journal: str | None
    year: int | None
    article_type: str | None
    keywords: tuple[str, ...]
    doi: str | None
    pmid: str | None
    license: str | None
    license_source: str | None
    figures: tuple[Figure, ...]


def parse_article(xml: bytes, tables: bool = False) -> Article:
    """Parse one JATS file; with `tables`, tables that have a picture of themselves are figures too.

    Raises:
        JatsError: it is empty, not well-formed, or holds no article.
    """
    article = article_element(xml)
    figs, xrefs = _figs_and_xrefs(article, tables)
    figures = tuple(_figure(fig, cited) for fig, cited in zip(figs, _mentions(figs, xrefs), strict=True))
    return _with_facts(article, figures)


def parse_figures(xml: bytes) -> tuple[Figure, ...]:
    """The figures alone, without mentions and without the article's facts. Raises JatsError as `parse_article` does."""
    return tuple(_figure(fig, ()) for fig in _figs_and_xrefs(article_element(xml))[0])


def _figs_and_xrefs(
    article: etree._Element, tables: bool = False
) -> tuple[list[etree._Element], list[tuple[etree._Element, str]]]:
    """All figs, and all xrefs with what they refer to, in one pass (a tenth of the time that the tree takes)."""
    figs, xrefs, entities, untyped = [], [], [], []
    for element in article.iter("fig", "xref", etree.Entity, *(("table-wrap",) if tables else ())):
        tag = element.tag
        if tag == "xref":
            if rid := element.get("rid"):
                xrefs.append((element, rid))
                if element.get("ref-type") is None:
                    untyped.append((element, rid))
        elif tag == "fig":
            figs.append(element)
        elif tag == "table-wrap":
            if any(child.tag in ("graphic", "alternatives") for child in element):
                figs.append(element)
        else:
            entities.append(element)
    for entity in entities:
        replace_entity(entity)
    if untyped:
        _find_citations(article, untyped)
    return figs, xrefs


def _find_citations(article: etree._Element, untyped: list[tuple[etree._Element, str]]) -> None:
    """Type the xrefs to references that do not say so: those that name nothing else (the lists are cut out of the bytes)."""
    ids = {element.get("id") for element in article.iter("{*}*") if element.tag != "ref"}
    for xref, rid in untyped:
        if ids.isdisjoint(rid.split()):
            xref.set("ref-type", "bibr")


# -- mentions


def _mentions(figs: list[etree._Element], xrefs: list[tuple[etree._Element, str]]) -> list[tuple[Mention, ...]]:
    """For each figure the sentences that cite it, each once, paragraph by paragraph; a figure does not cite itself."""
    by_id: dict[str, list[int]] = {}
    for n, fig in enumerate(figs):
        if xml_id := fig.get("id"):
            by_id.setdefault(xml_id, []).append(n)
    blocks: dict[etree._Element, dict[etree._Element, list[int]]] = {}
    for xref, rids in xrefs:
        targets = by_id.get(rids)
        if targets is None and " " in rids:
            targets = [n for rid in rids.split() for n in by_id.get(rid, ())]
        if targets:
            block = next(each for each in xref.iterancestors() if each.tag in STOPS)
            blocks.setdefault(block, {})[xref] = targets
    found: list[dict[str, bool]] = [{} for _ in figs]
    places: dict[etree._Element | None, list[etree._Element]] = {}
    for block, cited in blocks.items():
        parent = block.getparent()
        if parent not in places:
            places[parent] = list(block.iterancestors("fig", "table-wrap", "body"))
        around = [block, *places[parent]]
        in_body = any(element.tag == "body" for element in around)
        labels = {xref: "" if len(xref) else _short_label(xref, figs[n[0]]) for xref, n in cited.items()}
        for sentence, targets in zip(citing_sentences(block, labels), cited.values(), strict=True):
            for n in targets:
                if sentence and figs[n] not in around:
                    found[n][sentence] = found[n].get(sentence, False) or in_body
    return [tuple(Mention(sentence, in_body) for sentence, in_body in each.items()) for each in found]


def _short_label(xref: etree._Element, fig: etree._Element) -> str:
    """What stands in a sentence for an xref without text: the figure's label."""
    if xref.text and not xref.text.isspace():
        return ""
    label = fig.find("label")
    return text_of(label).rstrip(".:") if label is not None else ""


# -- figures

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
_APART = frozenset(
    ("fig", "table-wrap", "supplementary-material", "disp-formula", "inline-formula", "label", "alt-text")
)


def _figure(fig: etree._Element, mentions: tuple[Mention, ...]) -> Figure:
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
        if tag != "table" and next(child.iter("graphic", "media"), None) is not None:
            _graphics(child, graphics, permissions)
    if (not captions or label is None) and (group := fig.getparent()) is not None and group.tag == "fig-group":
        captions = captions or group.findall("caption")
        label = label or next(filter(None, map(text_of, group.iterfind("label"))), None)
    caption = " ".join(filter(None, map(text_of, captions)))
    spoken = caption
    if any(next(each.iter("sup", MATH), None) is not None for each in captions):
        spoken = " ".join(filter(None, (text_of(each, SPOKEN) for each in captions)))
    license_ = _own_license(permissions)
    credit = " ".join(map(text_of, (*credits, *permissions)))
    adapted = license_ == "unknown" or _taken_over(f"{caption} {credit}")
    return Figure(fig.get("id"), label, caption, mentions, license_, adapted, tuple(graphics), spoken)


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
        forms = list(element.iter("graphic", "media"))
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


# -- the article's facts

_YEAR = re.compile(r"\s*[12]\d{3}\s*", re.ASCII)
# Dates of a deposit, a preprint or a correction say nothing about when the article came out.
_OTHER_DATES = ("pmc-release", "preprint", "corrected", "retract", "nihms", "received", "accepted", "rev-")


def _with_facts(article: etree._Element, figures: tuple[Figure, ...]) -> Article:
    front = article.find("front")
    meta = front.find("article-meta") if front is not None else None
    journal = front.find("journal-meta") if front is not None else None
    if journal is not None:
        journal = next(journal.iter("journal-title"), None)
    title = doi = pmid = license_ = source = None
    years: list[int] = []
    keywords: list[str] = []
    for child in meta if meta is not None else ():
        tag = child.tag
        if tag == "article-id":
            kind = child.get("pub-id-type")
            if kind == "doi":
                doi = doi or text_of(child) or None
            elif kind == "pmid":
                pmid = pmid or text_of(child) or None
        elif tag == "title-group":
            heading = child.find("article-title")
            title = text_of(heading, TITLE) or None if heading is not None else None
        elif tag == "pub-date":
            years.extend(_year(child))
        elif tag == "permissions" and license_ is None:
            license_, source = stated_license(child)
        elif tag == "kwd-group" and child.get("kwd-group-type") != "abbreviations":
            keywords.extend(text_of(kwd, CAPTION) for kwd in child.iter("kwd", "compound-kwd"))
    return Article(
        title=title,
        journal=text_of(journal) or None if journal is not None else None,
        year=min(years, default=None),
        article_type=article.get("article-type"),
        keywords=tuple(dict.fromkeys(filter(None, keywords))),
        doi=doi,
        pmid=pmid,
        license=license_,
        license_source=source,
        figures=figures,
    )


def _year(pub_date: etree._Element) -> list[int]:
    """The year of one publication date, if it is one: the earliest of them is the article's."""
    kind = f"{pub_date.get('pub-type')} {pub_date.get('date-type')}"
    if any(other in kind for other in _OTHER_DATES):
        return []
    return [int(year.text) for year in pub_date if year.tag == "year" and year.text and _YEAR.fullmatch(year.text)]
