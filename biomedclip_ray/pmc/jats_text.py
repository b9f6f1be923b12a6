"""Text out of JATS elements: captions without loss, titles, and the sentences that cite a figure. Pure.

One walker serves all, steered by a table from tag to action: inline markup is transparent (words are neither glued nor
split), blocks are set apart by one space, formulas become TeX or MathML's tokens. White space is normalised last.

Trade-off: sentences are found by rules (abbreviations, initials, what follows the stop), not by a model: a wrong
boundary costs half a sentence of context, a model would cost more than parsing the article does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from lxml import etree

Rules = Mapping[str, int]

# What the walker does at an element; a tag without a rule is inline markup.
BLOCK, SKIP, GONE, BREAK, FORMULA, MATH, SUP, XREF = range(8)

_MATHML = "{http://www.w3.org/1998/Math/MathML}"
_TOKENS = tuple(_MATHML + tag for tag in ("mi", "mo", "mn", "mtext", "ms"))

_INVISIBLE = dict.fromkeys(("object-id", "inline-graphic", "private-char", "alt-text", "long-desc", "index-term"), GONE)
_FORMULAS = {"alternatives": FORMULA, "tex-math": FORMULA, _MATHML + "math": MATH}

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
    **_FORMULAS,
}
# The same as one would read it aloud: 10^4, and no superscript citations.
SPOKEN: Rules = {**CAPTION, "sup": SUP, "xref": XREF}
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
    **_FORMULAS,
    "break": BLOCK,
    "sup": SUP,
    "xref": XREF,
}
# Where climbing from an xref stops: exactly the elements that the walk above does not enter, so that each xref is met
# once. A displayed formula is climbed out of: its sentence is the paragraph's.
STOPS = (
    frozenset(_FLOATS) | frozenset(_ENDS) | {"td", "th", "term", "def", "attrib", "body", "front", "back", "article"}
)

# XML cannot hold these characters, so they can mark places in its text: a citing xref, and the end of a sentence.
MARK, END = "\x00", "\x01"


def text_of(element: etree._Element, rules: Rules = CAPTION) -> str:
    """The element's text without its tail, white space normalised."""
    out: list[str] = []
    _walk(element, out, rules, {})
    return normalised(out)


def normalised(pieces: Iterable[str]) -> str:
    return " ".join("".join(pieces).split())


def citing_sentences(block: etree._Element, cited: Mapping[etree._Element, str]) -> list[str]:
    """The sentence around each xref of `cited` (xref -> text where the xref has none) in the block, in document order."""
    out: list[str] = []
    _walk(block, out, SENTENCE, cited)
    text = "".join(out)
    stops = list(_STOP.finditer(text))
    sentences = []
    begin = end = after = 0
    at = text.find(MARK)
    while at >= 0:
        if at >= end:
            while after < len(stops) and stops[after].end() <= at:
                after += 1
            begin = next((stop.end() for stop in reversed(stops[:after]) if _ends_sentence(text, stop)), 0)
            end = next((stop.end() for stop in stops[after:] if _ends_sentence(text, stop)), len(text))
            sentence = " ".join(text[begin:end].replace(MARK, "").replace(END, "").split())
        sentences.append(sentence)
        at = text.find(MARK, at + 1)
    return sentences


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
                _xref(child, out, rules, cited)
            elif text := child.text:
                append(text)
        elif action == BLOCK:
            append(" ")
            _walk(child, out, rules, cited)
            append(" ")
        elif action == SUP:
            _superscript(child, out, rules, cited)
        elif action == BREAK:
            append(END)
        elif action != GONE:
            if action == SKIP:
                append(" ")
            else:
                append(_formula(child) if action == FORMULA else _mathml(child))
            _mark_inside(child, out, cited)
        elif cited and len(child):
            _mark_inside(child, out, cited)
        if text := child.tail:
            append(text)


def _mark_inside(element: etree._Element, out: list[str], cited: Mapping[etree._Element, str]) -> None:
    """Mark the xrefs in an element whose text is left out: each of `cited` is met once, or sentences go to wrong figures."""
    if cited:
        out.extend(MARK for xref in element.iter("xref") if xref in cited)


def _xref(xref: etree._Element, out: list[str], rules: Rules, cited: Mapping[etree._Element, str]) -> None:
    label = cited.get(xref)
    if label is not None:
        out.append(MARK)
        if not len(xref) and not (xref.text and xref.text.strip()):
            out.append(label)
            return
    elif _only_superscript(xref) and _is_citation(xref):
        _mark_inside(xref, out, cited)
        return
    _walk(xref, out, rules, cited)


def _is_citation(xref: etree._Element) -> bool:
    return xref.get("ref-type") == "bibr"


def _only_superscript(xref: etree._Element) -> bool:
    return len(xref) == 1 and xref[0].tag == "sup" and not xref.text and not xref[0].tail


def _superscript(sup: etree._Element, out: list[str], rules: Rules, cited: Mapping[etree._Element, str]) -> None:
    """Citations go, a number over a number becomes an exponent, everything else (Ca2+, 13C) is written as it stands."""
    if len(sup) and any(_is_citation(xref) for xref in sup.iter("xref")):
        _mark_inside(sup, out, cited)
        return
    if sup.text and out and out[-1][-1:].isdigit() and _EXPONENT.fullmatch(sup.text):
        out.append("^")
    _walk(sup, out, rules, cited)


_EXPONENT = re.compile(r"\s*[+\-\u2212\u2013]?\s*\d+\s*")
_TEX_BODY = re.compile(r"\\begin\{document\}(.*?)\\end\{document\}", re.DOTALL)
_TEX_MATH = re.compile(r"\$+(.+?)\$+", re.DOTALL)


def _formula(element: etree._Element) -> str:
    """TeX where there is some, else MathML's tokens, else the first form that is text."""
    tex = element if element.tag == "tex-math" else element.find("tex-math")
    if tex is not None:
        return _tex(tex.text or "")
    math = element.find(_MATHML + "math")
    if math is not None:
        return _mathml(math)
    forms = (text_of(form) for form in element if form.tag not in ("graphic", "inline-graphic", "media"))
    return next(filter(None, forms), "")


def _tex(source: str) -> str:
    """A publisher's whole TeX document reduced to its formula, `$x$`."""
    body = _TEX_BODY.search(source)
    text = body[1] if body else source
    math = _TEX_MATH.search(text)
    text = (math[1] if math else text).strip()
    return f"${text}$" if text else ""


def _mathml(math: etree._Element) -> str:
    pieces: list[str] = []
    for token in math.iter(*_TOKENS):
        pieces.extend(map(str, token.itertext()))
    return "".join(pieces)


_STOP = re.compile(
    r"""[.!?\x01](?: (?<=\x01) | ["'\u201d\u2019)\]]*\s+(?=["'\u201c\u2018(\[\x00]*[^\W_a-z]) )""", re.VERBOSE
)
_BEFORE_WORD = "([\"'\u201c\u2018" + MARK + END
_NEXT_WORD = re.compile(r"\w+")
_ABBREVIATIONS = frozenset(
    "fig figs figure ref refs eq eqs eqn eqns no nos cf vs ca approx dr mr mrs ms prof st sp spp var subsp ssp suppl supp"
    " supplem tab tabs vol pp p ch chap sec sect inc ltd co corp dept univ resp viz ext e.g eg i.e ie n.b a.k.a incl excl"
    " temp conc avg exp expt jan feb mar apr jun jul aug sep sept oct nov dec jr sr".split()
)
# After these a stop may or may not end the sentence; the next word tells.
_UNSURE = frozenset(("al", "etc"))
_STARTERS = frozenset(
    "A After All Also Although An As At Because Both But By Consistent Each Finally First For From Further Furthermore"
    " Hence Here However If Importantly In Interestingly It Its Moreover No Notably On Our Overall Second Several Since"
    " Similarly Some Such Taken That The Their Then There Therefore These They This Those Thus To Together Using We When"
    " Whereas While With".split()
)


def _ends_sentence(text: str, stop: re.Match[str]) -> bool:
    """Does this stop end a sentence, and not stand after "Fig", "e.g", "et al" or an initial?"""
    at = stop.start()
    if text.startswith("(" + MARK, stop.end()):
        return False  # "... grew. (Fig. 1)": the citation belongs to what it stands after
    if text[at] != "." or not text[at - 1].isalpha():
        return True
    words = text[max(0, at - 24) : at].split()
    word = words[-1].rpartition("(")[2].lstrip(_BEFORE_WORD) if words else ""
    if word.lower() in _ABBREVIATIONS:
        return False
    initial = len(word.rpartition(".")[2]) == 1 and word[-1].isupper()
    if initial or word.lower() in _UNSURE:
        following = _NEXT_WORD.search(text, stop.end())
        return following is not None and following[0] in _STARTERS
    return True
