"""Licence codes ("CC BY-NC-ND") out of what articles say about their licence. Pure.

Publishers state it in a URL, in a sentence, or only in a copyright line. Where a sentence leaves room, the narrower
licence is taken: a wrongly dropped article costs one article, a wrongly kept one breaks somebody's terms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lxml import etree

from biomedclip_ray.jats.text import text_of

_HREF = "{http://www.w3.org/1999/xlink}href"
_ALI = "{http://www.niso.org/schemas/ali/1.0/}license_ref"

_TERMS = r"by(?: ?[-_ ]? ?(?:n[cd]|sa))*"
_URL = re.compile(
    r"creativecommons\.org/+(?:licen[sc]es?[/:]+|publicdomain/)(?:cc[-_ ]?)?(zero|" + _TERMS + r")(?![a-z]|-[a-z])"
)
_CODE = re.compile(r"\bcc[-_ ]?(0|zero|" + _TERMS + r")(?![a-z]|-[a-z])")
_CAMEL = re.compile(r"creativecommons-?(" + _TERMS + r")")
# Words that restrict, as they stand in a text without its spaces and hyphens.
_RESTRICTIONS = (
    ("-nc", ("noncommercial", "notusedforcommercial", "notbeusedforcommercial")),
    ("-sa", ("sharealike",)),
    ("-nd", ("noderiv",)),
)
_USE = r"\W+(?:re-?)?(?:use|purpose|reproduction|distribution)s?"
_COMMERCIAL, _NON = r"commercial(?:ly)?", r"non-? ?commercial(?:ly)?"
# "commercial and non-commercial" use: both are allowed.
_BOTH_USES = re.compile(
    rf"\b(?:{_COMMERCIAL}(?:{_USE})?\W+(?:and|or|and/or|as well as)?\W*(?:for\W+)?{_NON}"
    rf"|{_NON}(?:{_USE})?\W+(?:and|or|and/or|as well as)\W+(?:for\W+)?{_COMMERCIAL})\b"
)
# Commercial use is not allowed, in other words than NonCommercial.
_NOT_COMMERCIAL = re.compile(
    r"\b(?:no|not|without|prohibit(?:s|ed|ing)?|exclud(?:es|ing)|except|other than)\b"
    r"(?:\W+(?:be|permitted|allowed|intended|used?|available|for|any|in|with)\b)*\W+commercial"
    rf"|\bcommercial{_USE}\W+(?:is|are)\W+(?:not|prohibited|forbidden|excluded)\b"
)
_SQUEEZE = str.maketrans("", "", " -")
_HYPHENS = str.maketrans(dict.fromkeys("\u00ad\u2010\u2011\u2012\u2013\u2014\u2212", "-"))


def _plain(text: str) -> str:
    """Lower case, one space for white space, "-" for each kind of hyphen: CC BY\u2011NC is not CC BY."""
    return " ".join(text.lower().translate(_HYPHENS).split())


def license_code(text: str) -> str | None:
    """The code that a URL, a licence type or a sentence names, e.g. "CC BY-NC"; None where it names none."""
    return _code_in(_plain(text))


def _code_in(low: str) -> str | None:
    match = _URL.search(low) or _CODE.search(low) or _CAMEL.fullmatch(low)
    return _code(match[1]) if match else _named(low)


def _codes_in(low: str) -> list[str]:
    """Every code that a statement names, by links, abbreviations and words."""
    codes = [_code(match[1]) for form in (_URL, _CODE) for match in form.finditer(low)]
    words = _code_in(low), _named(low)
    return codes + [code for code in words if code is not None]


def _named(low: str) -> str | None:
    """The code of a licence called by its words ("Creative Commons Attribution NonCommercial")."""
    if "creative commons" not in low:
        return None
    squeezed = _BOTH_USES.sub("", low).translate(_SQUEEZE)
    if "attribution" in low:
        terms = [term for term, words in _RESTRICTIONS if any(word in squeezed for word in words)]
        return _code("by" + "".join(terms) + ("-nc" if _NOT_COMMERCIAL.search(low) else ""))
    return "CC0" if "publicdomaindedication" in squeezed or "creativecommonszero" in squeezed else None


def _code(terms: str) -> str:
    """`by-nd-nc`, `by nc_nd`, `zero` -> the one spelling used here."""
    if terms in ("zero", "0"):
        return "CC0"
    parts = ["BY", *(part for part in ("NC", "SA", "ND") if part.lower() in terms[2:])]
    return "CC " + "-".join(parts)


def stated_license(permissions: etree._Element) -> tuple[str | None, str | None]:
    """(code, the element it came from) of a JATS `permissions` element; (None, None) where none can be told.

    Links come before prose: `license/@xlink:href`, `ali:license_ref`, links in the licence's paragraphs, their text,
    `license/@license-type`, and last the copyright statement. Where a later one of them is narrower than the first (a
    link to CC BY over a text that says NonCommercial), the narrower one holds; where neither is (ShareAlike against
    NonCommercial), the licence is "unknown".
    """
    first: tuple[str | None, str | None] = None, None
    for text, source in _statements(permissions):
        low = _plain(text)
        for code in _codes_in(low):
            if first[0] is None or _demands(code) > _demands(first[0]):
                first = code, source
            elif not _demands(code) <= _demands(first[0]):
                return "unknown", source
    return first


def _statements(permissions: etree._Element) -> Iterator[tuple[str, str]]:
    licenses = permissions.findall("license")
    for element in licenses:
        yield element.get(_HREF) or "", "license/@xlink:href"
    for element in permissions.iter(_ALI):
        yield element.text or "", "ali:license_ref"
    for element in licenses:
        for link in element.iter("ext-link", "uri"):
            yield link.get(_HREF) or link.text or "", "license-p/ext-link"
        yield text_of(element), "license-p"
        yield element.get("license-type") or "", "license/@license-type"
    for element in permissions.iterfind("copyright-statement"):
        yield text_of(element), "copyright-statement"


def _demands(code: str) -> set[str]:
    """What a licence asks of its user: {"BY", "NC"}; nothing for CC0."""
    return set(code[3:].split("-")) if code != "CC0" else set()
