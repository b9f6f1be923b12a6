"""The folding of captions and of what is asked for: a small table of its own, and no library's.

A caption is cut into pieces at every change between letters, digits and signs, so that `IL6`, `IL-6` and `IL 6`, or
`TNFα`, `TNF-α` and `TNF-alpha`, are the same pieces in the same order; a word that is asked for is then a phrase of its
pieces. Signs are pieces where they mean something (`ER+`, `< 0.05`, `−80`), and lost elsewhere. The general tools do
harm here: transliteration turns µm into mm, tokenizers drop `+`, `<` and primers of 42 letters, lists of stop words
swallow ALL (the leukaemia), WHO and vitamin A. Lance stores the pieces as they are (`INVERTED_INDEX`); only words in
small letters are stemmed, by Lance's own Snowball stemmer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import lance

COLUMN = "words"
INVERTED_INDEX: dict[str, Any] = {
    "base_tokenizer": "whitespace",
    "lower_case": False,
    "stem": False,
    "remove_stop_words": False,
    "ascii_folding": False,
    "max_token_length": None,
    "with_position": True,
}
"""Pieces are folded here; Lance only cuts at the blanks between them. Positions are what phrases need."""

ACRONYM = 5  # letters; a longer word in capitals is a heading

_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau "
    "upsilon phi chi psi omega"
)
_GREEK = dict(zip("αβγδεζηθικλμνξοπρστυφχψω", _GREEK_NAMES.split(), strict=True))
_GREEK |= {"ς": "sigma", "µ": "mu", "ϐ": "beta", "ϑ": "theta", "ϕ": "phi", "ϵ": "epsilon", "ϰ": "kappa", "ϱ": "rho"}

# A name at the end of a word in Latin letters is cut off (IFNgamma); the short ones end too many other words.
_NAME_AT_END = re.compile(r"(.{2,})(alpha|beta|gamma|delta|epsilon|theta|kappa|lambda|sigma|omega)", re.IGNORECASE)
_NAME_INSIDE = re.compile(r"(.+?)(alpha|beta|gamma|kappa)([A-Z].*)")

_IRREGULAR = {
    "mice": "mouse",
    "nuclei": "nucleus",
    "nucleoli": "nucleolus",
    "bacteria": "bacterium",
    "mitochondria": "mitochondrion",
    "metastases": "metastasis",
    "hypotheses": "hypothesis",
    "analyses": "analysis",
    "diagnoses": "diagnosis",
    "prognoses": "prognosis",
    "axes": "axis",
    "vertebrae": "vertebra",
    "larvae": "larva",
    "fungi": "fungus",
    "foci": "focus",
    "loci": "locus",
    "stimuli": "stimulus",
    "septa": "septum",
    "cilia": "cilium",
    "atria": "atrium",
    "epithelia": "epithelium",
    "criteria": "criterion",
    "feet": "foot",
    "teeth": "tooth",
    "women": "woman",
    "men": "man",
}

STOP = frozenset(
    "a all am an and are as at be been but by can did do does for from had has have he her him his how if in into is "
    "it its "
    "may me my no nor not of on or our own she so some such than that the their them then there these they this to "
    "too us "
    "was we were what when where which who will with you".split()
)
"""Small words that are not asked for beside others; in capitals each is an acronym (ALL, WHO, IT, NO) and stands in the
index as such.
"""

MOLAR = frozenset(("M", "mM", "nM", "pM", "fM"))
"""Units whose capital tells them from a length: 5 mM is not 5 mm."""

_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_COMPARISONS = {"≤": "<=", "⩽": "<=", "≥": ">=", "⩾": ">="}
_MINUS = "-−‐‑–﹣－"

_PIECES = re.compile(
    rf"""
    (?P<doi>\b10\.[0-9]{{4,9}}/[^\s"“”<>]+)
  | (?P<pmcid>\bPMC[0-9]+)(?:\.[0-9]+\b)?
  | (?P<pmid>\bPMID[0-9]+)
  | (?P<possessive>(?<=[^\W\d_])['’]s\b)
  | (?P<number>[0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:[.·][0-9]+)?|(?<![\w.])\.[0-9]+)
  | (?P<power>\^\s?[{_MINUS}+]?[0-9]+)
  | (?P<super>[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+)
  | (?P<sub>[₀-₉]+)
  | (?P<greek>[Ͱ-Ͽἀ-῿]{{3,}})
  | (?P<letter>[Ͱ-Ͽµ])
  | (?P<latin>[A-Za-zªºÀ-ÖØ-öø-ɏḀ-ỿ̀-ͯ]+)
  | (?P<other>[^\W\d_]+)
  | (?P<genotype>(?<![/])[+{_MINUS}]/[+{_MINUS}](?![\w]))
  | (?P<comparison><=|>=|[<>=≤≥⩽⩾±%])
  | (?P<plus>(?<=[\w)+⁺])[+＋])
  | (?P<minus>(?<=[\w)+])[{_MINUS}](?=[\s,.;:)\]/|]|$)|(?<=\w)−(?=[^\W\d_])|(?<![\w)])[{_MINUS}](?=[0-9.]))
    """,
    re.VERBOSE,
)


class Piece(NamedTuple):
    """One piece of a text and where it stands there."""

    text: str
    start: int
    end: int
    source: str  # as the text writes it
    sign: bool = False


def document(caption: str, article_id: str | None = None, pmid: str | None = None, doi: str | None = None) -> str:
    """What the index holds of a caption: its pieces, and after them the article's numbers as words of their own.

    >>> document("TNF-α in IL6-/- mice (p < 0.05)", "PMC10009416.1", "36908351", "10.1/AB")
    'tnf alpha in il 6 -/- mous p < 0.05 PMC10009416 PMID36908351 10.1/ab'
    """
    words = [piece.text for piece in pieces(caption or "")]
    if article_id:
        words.append(article_id.partition(".")[0])
    if pmid:
        words.append(f"PMID{pmid}")
    if doi:
        words.append(_doi(doi))
    return " ".join(word for word in words if word and not re.search(r"\s", word))


def pieces(text: str) -> list[Piece]:
    """The folded pieces of a text, in order."""
    shouting = not any(character.islower() for character in text) and len(text.split()) > 2
    found: list[Piece] = []
    for match in _PIECES.finditer(text):
        found.extend(_fold(match, found, shouting))
    return found


def _fold(match: re.Match[str], before: list[Piece], shouting: bool) -> Iterator[Piece]:
    kind, source, start, end = str(match.lastgroup), match[0], match.start(), match.end()
    glued = bool(before) and before[-1].end == start
    if kind == "possessive":
        return
    if kind == "latin":
        yield from _latin(source, start, before, shouting)
    elif kind == "letter":
        name = _GREEK.get(source.lower()) or source.casefold()
        yield Piece(name, start, end, source)
    elif kind == "number":
        number = source.replace(",", "").replace("·", ".")
        yield Piece("0" + number if number.startswith(".") else number, start, end, source)
    elif kind == "super":
        plain = source.translate(_SUPERSCRIPTS)
        if glued and before[-1].source[-1].isdecimal() and plain[-1].isdigit():
            yield Piece("^" + plain, start, end, source, True)  # 10⁶ is a power, Ca²⁺ is not
        else:
            for part in re.finditer(r"\d+|[+-]", plain):
                yield Piece(part[0], start + part.start(), start + part.end(), source, not part[0].isdigit())
    elif kind == "power":
        yield Piece("^" + _plain_minus(source[1:].strip()), start, end, source, True)
    elif kind == "sub":
        yield Piece(source.translate(_SUBSCRIPTS), start, end, source)
    elif kind == "genotype":
        yield Piece(_plain_minus(source), start, end, source, True)
    elif kind in ("comparison", "plus", "minus"):
        sign = {"plus": "+", "minus": "-"}.get(kind) or _COMPARISONS.get(source, source)
        yield Piece(sign, start, end, source, True)
    elif kind == "doi":
        text = _doi(source)
        yield Piece(text, start, start + len(text), source)
    elif kind in ("pmcid", "pmid"):
        yield Piece(match[kind], start, end, source)
    else:
        yield Piece(source.casefold(), start, end, source)


def _latin(source: str, start: int, before: list[Piece], shouting: bool) -> Iterator[Piece]:
    """A run of Latin letters: one piece, or two or three where it ends with or holds the name of a Greek letter."""
    if source in MOLAR and _after_number(start, before):
        yield Piece(source, start, start + len(source), source)
        return
    for folded, at, word in _split(source, shouting):
        yield Piece(folded, start + at, start + at + len(word), word)


@lru_cache(65536)  # captions use the same words: 1.5 times as fast
def _split(source: str, shouting: bool) -> list[tuple[str, int, str]]:
    """(piece, place, word) of a run of Latin letters."""
    named = _NAME_INSIDE.fullmatch(source) or _NAME_AT_END.fullmatch(source)
    if not named:
        folded = _word(source, shouting)
        return [(folded, 0, source)] if folded else []
    words = [(named[part], named.start(part)) for part in range(1, (named.lastindex or 0) + 1)]
    return [(word.lower() if n == 1 else _word(word, shouting), at, word) for n, (word, at) in enumerate(words)]


def _after_number(start: int, before: list[Piece]) -> bool:
    if before and before[-1].text == "mu" and before[-1].end == start:
        start, before = before[-1].start, before[:-1]
    return bool(before) and before[-1].source[-1].isdecimal() and start - before[-1].end <= 1


def _word(source: str, shouting: bool) -> str:
    """Lower case without accents, stemmed unless its capitals say that it is a name: ALL stays apart from all, AIDS
    from aid.
    """
    plain = without_accents(source) if len(source) > 1 else source
    plural = re.fullmatch(r"(.*[A-Z])s", plain)  # DNAs, siRNAs
    if plural:
        plain = plural[1]
    lower = plain.casefold()
    if not shouting and plain.isupper() and 1 < len(plain) <= ACRONYM:
        return plain if lower in STOP else lower
    if plural or (not plain.isupper() and not plain[1:].islower()):
        return lower
    return stem(lower)


@lru_cache(65536)
def stem(word: str) -> str:
    """The Snowball stem of a word in small letters, irregular plurals of biology first."""
    word = _IRREGULAR.get(word, word)
    if len(word) < 4 or not word.isascii():
        return word
    tokens = lance.tokenize(
        word, base_tokenizer="whitespace", stem=True, remove_stop_words=False, max_token_length=None
    )
    return str(tokens[0].text) if tokens else word


def _doi(text: str) -> str:
    return text.strip().rstrip(".,;:)]}'").lower()


def _plain_minus(text: str) -> str:
    return re.sub(f"[{_MINUS}]", "-", text)


def without_accents(text: str) -> str:
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
