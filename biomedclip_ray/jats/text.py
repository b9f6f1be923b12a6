"""Text out of JATS elements: captions without loss, titles, and the sentences that cite a figure. Pure.

One walker serves all, steered by a table from tag to action: inline markup is transparent (words are neither glued nor
split), blocks are set apart by one space, formulas become TeX or MathML's tokens (`math.py`), sentences are found in
`sentences.py`. White space is normalised last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import ascii_lowercase, ascii_uppercase

from lxml import etree

from biomedclip_ray.jats.math import MATH, mathml, power, tex
from biomedclip_ray.jats.sentences import END, MARK, around_marks

Rules = Mapping[str, int]

# What the walker does at an element; a tag without a rule is inline markup.
BLOCK, SKIP, GONE, BREAK, FORMULA, ALOUD, SUP, XREF, LETTERED = range(9)

_INVISIBLE = dict.fromkeys(("object-id", "inline-graphic", "private-char", "alt-text", "long-desc", "index-term"), GONE)
_FORMULAS = ("alternatives", "tex-math", MATH)
_READ_ALOUD = {**dict.fromkeys(_FORMULAS, ALOUD), "sup": SUP, "xref": XREF}

_BLOCKS = """
    p title label subtitle caption list list-item def-list def-item def term disp-formula disp-formula-group disp-quote
    supplementary-material media boxed-text verse-group verse-line attrib sec statement speech speaker preformat code
    table-wrap table thead tbody tfoot tr td th break fn array permissions copyright-statement copyright-holder license
    license-p
""".split()

# Captions stay as the XML has them; a nested figure is a figure of its own.
CAPTION: Rules = {
    **dict.fromkeys(_BLOCKS, BLOCK),
    **dict.fromkeys(("fig", "fig-group", "graphic"), SKIP),
    **_INVISIBLE,
    **dict.fromkeys(_FORMULAS, FORMULA),
}
# The plain caption: 10^4, no superscript citations, the letters of a lettered list, a gap where a legend's key is an
# image.
PLAIN_CAPTION: Rules = {**CAPTION, **_READ_ALOUD, "inline-graphic": SKIP, "list": LETTERED}
TITLE: Rules = {**CAPTION, "xref": GONE, "fn": GONE}

# Around a mention: what floats or is displayed inside a paragraph is left out and the text after it goes on; a list or
# a quotation ends the sentence. An xref inside any of these belongs to that element, or to a block further in.
_FLOATS = (
    "fig fig-group table-wrap table-wrap-group supplementary-material media graphic boxed-text fn code preformat"
    " chem-struct-wrap array"
).split()
_ENDS = (
    "p title list list-item def-list def-item disp-quote verse-group statement speech caption sec table label".split()
)
_DISPLAYED = ("disp-formula", "disp-formula-group")
SENTENCE: Rules = {
    **dict.fromkeys(_FLOATS, SKIP),
    **dict.fromkeys(_DISPLAYED, SKIP),
    **dict.fromkeys(_ENDS, BREAK),
    **_INVISIBLE,
    **_READ_ALOUD,
    "inline-graphic": SKIP,
    "break": BLOCK,
}
# Where climbing from an xref stops: exactly the elements that the walk above does not enter, so that each xref is met
# once. A displayed formula is climbed out of: its sentence is the paragraph's.
STOPS = (
    frozenset(_FLOATS) | frozenset(_ENDS) | {"td", "th", "term", "def", "attrib", "body", "front", "back", "article"}
)


def text_of(element: etree._Element, rules: Rules = CAPTION) -> str:
    """The element's text without its tail, white space normalised."""
    out: list[str] = []
    _walk(element, out, rules, {})
    return normalised(out)


def normalised(pieces: Iterable[str]) -> str:
    return " ".join("".join(pieces).split())


def citing_sentences(block: etree._Element, cited: Mapping[etree._Element, str]) -> list[str]:
    """The sentence around each xref of `cited` (xref -> text where the xref has none) in the block, in
    document order.
    """
    out: list[str] = []
    _walk(block, out, SENTENCE, cited)
    return around_marks("".join(out))


def _walk(element: etree._Element, out: list[str], rules: Rules, cited: Mapping[etree._Element, str]) -> None:
    # Half of the extraction's time is spent here: lxml makes a new string at each look at .text, so each is read once.
    append, rule = out.append, rules.get
    if text := element.text:
        append(text)
    for child in element:
        action = rule(child.tag)
        if action is None:
            if len(child):
                _walk(child, out, rules, cited)
            elif text := child.text:
                append(text)
        elif action == XREF:
            if child in cited or len(child):
                if _xref(child, out, rules, cited):
                    continue
            elif text := child.text:
                append(text)
        elif action == BLOCK:
            append(" ")
            _walk(child, out, rules, cited)
            append(" ")
        elif action == LETTERED:
            append(" ")
            _list(child, out, rules, cited)
            append(" ")
        elif action == SUP:
            if _superscript(child, out, rules, cited):
                continue
        elif action == BREAK:
            append(END)
        elif action != GONE:
            if action == SKIP:
                append(" ")
            else:
                _formula(child, out, action == ALOUD)
            _mark_inside(child, out, cited)
        elif cited and len(child):
            _mark_inside(child, out, cited)
        if text := child.tail:
            append(text)


_MARKS: Mapping[str, Sequence[str]] = {
    "alpha-lower": ascii_lowercase,
    "alpha-upper": ascii_uppercase,
    "roman-lower": ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii"),
}
_HAS_LETTER = re.compile(r"\s*[(\[]?(?:[A-Za-z]|[ivx]+)[)\].:]")


def _list(element: etree._Element, out: list[str], rules: Rules, cited: Mapping[etree._Element, str]) -> None:
    """A list; "(a)" before each item of one whose letters stand in no text, as a reader sees it."""
    items = element.findall("list-item")
    marks = _MARKS.get(element.get("list-type") or "", ())
    lettered = 1 < len(items) <= len(marks)
    out.append(element.text or "")
    for child in element:
        out.append(" ")
        if lettered and child.tag == "list-item" and child.find("label") is None:
            begin = "".join(map(str, child.itertext()))[:8]
            out.append("" if _HAS_LETTER.match(begin) else f"({marks[items.index(child)]}) ")
        _walk(child, out, rules, cited)
        out.append(" " + (child.tail or ""))


def _mark_inside(element: etree._Element, out: list[str], cited: Mapping[etree._Element, str]) -> None:
    """Mark the xrefs in an element whose text is left out: each of `cited` is met once, or sentences go to wrong
    figures.
    """
    if cited:
        out.extend(MARK for xref in element.iter("xref") if xref in cited)


def _formula(element: etree._Element, out: list[str], aloud: bool) -> None:
    """TeX where there is some, else MathML, else the first form that is text."""
    if element.tag == "tex-math":
        out.append(tex(element.text or ""))
    elif element.tag == MATH:
        if not _stands_in_tex(element):
            mathml(element, out, aloud)
    elif source := tex(element.findtext("tex-math", "")):
        out.append(source)
    elif (math := element.find(MATH)) is not None:
        mathml(math, out, aloud)
    else:
        rules = PLAIN_CAPTION if aloud else CAPTION
        forms = (text_of(form, rules) for form in element if form.tag not in ("graphic", "inline-graphic", "media"))
        out.append(next(filter(None, forms), ""))


def _stands_in_tex(math: etree._Element) -> bool:
    """Is the same formula there as TeX: anywhere in its formula element, elsewhere directly beside it?"""
    parent = math.getparent()
    if parent is not None and parent.tag in ("inline-formula", "disp-formula"):
        return parent.find("tex-math") is not None
    before, after = math.getprevious(), math.getnext()
    return (before is not None and before.tag == "tex-math" and not (before.tail or "").strip()) or (
        after is not None and after.tag == "tex-math" and not (math.tail or "").strip()
    )


# -- superscripts: citations go, powers get their sign, everything else (Ca2+, 13C) is written as it stands

_SEPARATORS = " \t\r\n\u00a0\u2009\u202f,;-\u2010\u2011\u2012\u2013\u2014\u2212"
_LIST = re.compile(rf"[{re.escape(_SEPARATORS)}\d.()\[\]]*")
# Numbers in a row over the end of a word or a sentence: citations without an xref. R1,2 and 10-12 are none.
_UNLINKED = re.compile(r"\s*\d{1,3}(?:\s*[,;\-\u2010-\u2013]\s*\d{1,3})+\s*")
_WORD_END = re.compile(r"(?:[a-z]{3}|[.,;:)\]\u201d])\s*\Z")
_OPENS = "([{/\u201c\u2018-\u2010\u2011\u2012\u2013\u2014\u2212=+~<>" + "\x00\x01"  # before a word begins
_CERTAIN = frozenset(",;()[]")  # a dash or a number in a superscript may mean something else


def _xref(xref: etree._Element, out: list[str], rules: Rules, cited: Mapping[etree._Element, str]) -> bool:
    """Write an xref, or leave a superscript citation out; True where what follows it goes too."""
    label = cited.get(xref)
    if label is not None:
        out.append(MARK)
        if not len(xref) and not (xref.text and xref.text.strip()):
            out.append(label)
            return False
    elif _is_raised_citation(xref, cited):
        if _leads_word(xref, out):
            out.append("".join(map(str, xref.itertext())))
            return False
        _mark_inside(xref, out, cited)
        return _list_goes_on(xref, cited)
    _walk(xref, out, rules, cited)
    return False


def _superscript(sup: etree._Element, out: list[str], rules: Rules, cited: Mapping[etree._Element, str]) -> bool:
    """Write a superscript, or leave one of citations out; True where what follows it goes too."""
    holds_xref = len(sup) and next(sup.iter("xref"), None) is not None
    if _leads_word(sup, out):
        _walk(sup, out, rules, cited)
        return False
    if holds_xref and any(map(_is_citation, sup.iter("xref"))):
        rest = "".join(_outside_citations(sup))
        _mark_inside(sup, out, cited)
        if _LIST.fullmatch(rest):
            return _list_goes_on(sup, cited)
        out.append(rest.strip(_SEPARATORS))  # CD4+ with a citation after the sign
        return False
    text = "".join(map(str, sup.itertext())) if len(sup) else sup.text
    if text and not holds_xref:
        if _is_between_citations(sup, text, cited):
            return _list_goes_on(sup, cited)
        if _UNLINKED.fullmatch(text) and _WORD_END.search("".join(out[-8:])[-40:]):
            return False
        if out and out[-1][-1:].isalpha():  # m2, most of them
            _walk(sup, out, rules, cited)
            return False
        previous = sup.getprevious()
        over_subscript = previous is not None and previous.tag == "sub" and not previous.tail
        if raised := power("".join(out[-8:])[-40:], text, sup.tail or "", over_subscript):
            while out and not out[-1].strip():
                out.pop()
            if out:
                out[-1] = out[-1].rstrip()
            out.append(raised + " " if text[-1].isspace() else raised)
            return False
    _walk(sup, out, rules, cited)
    return False


_ATOM = re.compile(r"(?:[A-Z][a-z]?|[a-z])(?![A-Za-z])|[A-Z][a-z]?[A-Z0-9]")


def _leads_word(raised: etree._Element, out: list[str]) -> bool:
    """Does it stand at the beginning of a word, as in 13C, 206, 207Pb or 2,4A? Citations stand at the end of one.

    Behind a comma or a bracket without a space what follows must look like an element's symbol.
    """
    tail, following = raised.tail, raised.getnext()
    if not tail and following is not None and following.tag != "sup":
        tail = "".join(map(str, following.itertext())) + (following.tail or "")
    if not tail or not tail[0].isalpha():
        return False
    before = "".join(out[-8:])[-1:]
    if not before or before.isspace() or before in _OPENS:
        return True
    return before in ",;:)]" and _ATOM.match(tail) is not None


def _is_citation(xref: etree._Element) -> bool:
    return xref.get("ref-type") == "bibr"


def _is_raised_citation(element: etree._Element | None, cited: Mapping[etree._Element, str]) -> bool:
    """Is it a citation, or several, and all of it superscript? `cited` (xrefs to figures) are none."""
    if element is None or element in cited:
        return False
    if element.tag == "xref":
        return _is_citation(element) and _is_superscript(element)
    citations = element.tag == "sup" and len(element) and any(map(_is_citation, element.iter("xref")))
    return bool(citations) and _LIST.fullmatch("".join(_outside_citations(element))) is not None


def _is_superscript(element: etree._Element) -> bool:
    """Does all text of an element but separators stand in `sup`?"""
    return (
        len(element) > 0
        and not (element.text or "").strip(_SEPARATORS)
        and all(
            (child.tag == "sup" or _is_superscript(child)) and not (child.tail or "").strip(_SEPARATORS)
            for child in element
        )
    )


def _outside_citations(element: etree._Element) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        if child.tag != "xref" or not _is_citation(child):
            yield from _outside_citations(child)
        yield child.tail or ""


def _is_between_citations(sup: etree._Element, text: str, cited: Mapping[etree._Element, str]) -> bool:
    """Is it the comma, dash or unlinked number of a list whose citations stand beside it?"""
    if not _LIST.fullmatch(text):
        return False
    previous = sup.getprevious()
    follows = previous is not None and not (previous.tail or "").strip() and _is_raised_citation(previous, cited)
    leads = not (sup.tail or "").strip() and _is_raised_citation(sup.getnext(), cited)
    return (follows or leads) if _CERTAIN & set(text) else (follows and leads)


def _list_goes_on(element: etree._Element, cited: Mapping[etree._Element, str]) -> bool:
    """Is what stands between this citation and the next element a separator of one list?"""
    following = element.getnext()
    return not (element.tail or "").strip(_SEPARATORS) and _is_raised_citation(following, cited)
