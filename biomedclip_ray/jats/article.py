"""JATS XML -> an article with its figures: labels, captions, graphics, licences, and the sentences that cite them.
Pure.

Nothing is lost and nothing raises but `JatsError`: figures without caption, label, id or graphic are returned as they
are, and the stage decides.

Trade-off: one pass over the tree picks up every `fig` and `xref`, and text is only walked where a figure is or is
cited. With the reference lists cut out (`xml.py`) everything takes 1.4 times what lxml needs for the tree alone
(benchmarks/jats.py); walking the cited paragraphs in Python is the largest share of what comes on top.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lxml import etree

from biomedclip_ray.jats.figures import Figure, Mention, figure_of, is_figure
from biomedclip_ray.jats.legends import GRAPHIC, GROUPS, lenders
from biomedclip_ray.jats.licenses import stated_license
from biomedclip_ray.jats.text import CAPTION, STOPS, TITLE, citing_sentences, text_of
from biomedclip_ray.jats.xml import JatsError, article_element, replace_entity

__all__ = ["Article", "Figure", "JatsError", "Mention", "parse_article", "parse_figures"]


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
    preprint: str | None
    """DOI of the preprint that it names as its own."""
    license: str | None
    license_source: str | None
    figures: tuple[Figure, ...]


def parse_article(xml: bytes, tables: bool = False) -> Article:
    """Parse one JATS file; with `tables`, tables that have an image of themselves are figures too.

    Raises:
        JatsError: it is empty, not well-formed, or holds no article.
    """
    article = article_element(xml)
    figs, xrefs = _figs_and_xrefs(article, tables)
    _find_citations(article, xrefs)
    figures = tuple(figure_of(fig, cited) for fig, cited in zip(figs, _mentions(figs, xrefs), strict=True))
    return _with_facts(article, figures)


def parse_figures(xml: bytes) -> tuple[Figure, ...]:
    """The figures alone, without mentions and without the article's facts. Raises JatsError as `parse_article` does."""
    article = article_element(xml)
    figs, _ = _figs_and_xrefs(article, cited=False)
    inside = (xref for fig in figs for each in (fig, *lenders(fig)) for xref in each.iter("xref"))
    _find_citations(article, [(xref, rid) for xref in inside if (rid := xref.get("rid"))])
    return tuple(figure_of(fig, ()) for fig in figs)


def _figs_and_xrefs(
    article: etree._Element, tables: bool = False, cited: bool = True
) -> tuple[list[etree._Element], list[tuple[etree._Element, str]]]:
    """All figures, and if asked for all xrefs with what they refer to, in one pass (a tenth of what the tree takes).

    Figures are figs, groups with images of their own, captioned graphics outside any fig; if asked for, tables with an
    image.
    """
    figs, xrefs, entities = [], [], []
    asked = (*(("xref",) if cited else ()), *(("table-wrap",) if tables else ()))
    wanted = ("fig", "fig-group", etree.Entity, *GRAPHIC, *asked)
    for element in article.iter(*wanted):
        tag = element.tag
        if tag == "xref":
            if rid := element.get("rid"):
                xrefs.append((element, rid))
        elif tag is etree.Entity:
            entities.append(element)
        elif (len(element) or tag == "fig") and is_figure(element):
            figs.append(element)
    for entity in entities:
        replace_entity(entity)
    return figs, xrefs


def _find_citations(article: etree._Element, xrefs: list[tuple[etree._Element, str]]) -> None:
    """Type the xrefs to references that do not say so: those that name nothing else (the lists are cut out of the
    bytes).
    """
    untyped = [(xref, rid) for xref, rid in xrefs if xref.get("ref-type") is None]
    if not untyped:
        return
    ids = {element.get("id") for element in article.iter("{*}*") if element.tag != "ref"}
    for xref, rid in untyped:
        if ids.isdisjoint(rid.split()):
            xref.set("ref-type", "bibr")


# -- mentions


def _mentions(figs: list[etree._Element], xrefs: list[tuple[etree._Element, str]]) -> list[tuple[Mention, ...]]:
    """For each figure the sentences that cite it or its group, each once, paragraph by paragraph.

    A figure does not cite itself: no sentence counts that is part of its caption, its group's caption included.
    """
    by_id: dict[str, list[int]] = {}
    for n, fig in enumerate(figs):
        holders = ("fig", *GROUPS) if fig.tag in GRAPHIC else GROUPS
        for element in (fig, *fig.iterancestors(*holders)):
            if xml_id := element.get("id"):
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
            places[parent] = list(block.iterancestors("fig", "table-wrap", "body", *GROUPS, *GRAPHIC))
        around = [block, *places[parent]]
        owner = next(iter(places[parent]), None)
        captions = owner is not None and owner.tag != "body"
        in_body = any(element.tag == "body" for element in around)
        labels = {xref: "" if len(xref) else _short_label(xref, figs[n[0]]) for xref, n in cited.items()}
        for sentence, targets in zip(citing_sentences(block, labels), cited.values(), strict=True):
            for n in targets:
                if sentence and figs[n] not in around and not (captions and owner in lenders(figs[n])):
                    found[n][sentence] = found[n].get(sentence, False) or in_body
    return [tuple(Mention(sentence, in_body) for sentence, in_body in each.items()) for each in found]


def _short_label(xref: etree._Element, fig: etree._Element) -> str:
    """What stands in a sentence for an xref without text: the figure's label."""
    if xref.text and not xref.text.isspace():
        return ""
    label = fig.find("label")
    return text_of(label).rstrip(".:") if label is not None else ""


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
    title = doi = pmid = preprint = license_ = source = None
    bare = False
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
        elif tag in ("license", "copyright-statement"):
            bare = True
        elif tag in _HISTORIES:
            preprint = preprint or _preprint(child)
        elif tag == "kwd-group" and child.get("kwd-group-type") != "abbreviations":
            keywords.extend(text_of(kwd, CAPTION) for kwd in child.iter("kwd", "compound-kwd"))
    if bare and license_ is None and meta is not None:  # NLM 2.x has no permissions element around them
        license_, source = stated_license(meta)
    return Article(
        title=title,
        journal=text_of(journal) or None if journal is not None else None,
        year=min(years, default=None),
        article_type=article.get("article-type"),
        keywords=tuple(dict.fromkeys(filter(None, keywords))),
        doi=doi,
        pmid=pmid,
        preprint=preprint,
        license=license_,
        license_source=source,
        figures=figures,
    )


_HISTORIES = ("related-article", "related-object", "pub-history")
_HREF = "{http://www.w3.org/1999/xlink}href"
_KINDS = ("related-article-type", "link-type", "event-type", "content-type")
_DOI = re.compile(r"10\.\d{4,9}/[^\s?#]+")
_VERSION = re.compile(r"v\d{1,2}$")


def _preprint(element: etree._Element) -> str | None:
    """The DOI of what a `related-article`, or an event of the `pub-history`, calls the article's preprint."""
    for part in element.iter("{*}*"):
        kinds = " ".join(part.get(name) or "" for name in _KINDS)
        if "preprint" in kinds.lower():
            for inner in part.iter("{*}*"):
                if found := _DOI.search(inner.get(_HREF) or inner.text or ""):
                    return _VERSION.sub("", found[0].rstrip(".,;"))
    return None


def _year(pub_date: etree._Element) -> list[int]:
    """The year of one publication date, if it is one: the earliest of them is the article's."""
    kind = f"{pub_date.get('pub-type')} {pub_date.get('date-type')}"
    if any(other in kind for other in _OTHER_DATES):
        return []
    return [int(year.text) for year in pub_date if year.tag == "year" and year.text and _YEAR.fullmatch(year.text)]
