"""Formulas and powers as text: TeX where there is some, else MathML's tokens, as they stand or read aloud. Pure.

Read aloud, a power has its sign (10^-11 where the tokens alone would give 10-11), a fraction its bar, and H2O stays
whole.
"""

from __future__ import annotations

import re

from lxml import etree

_MATHML = "{http://www.w3.org/1998/Math/MathML}"
MATH = _MATHML + "math"
_TOKENS = tuple(_MATHML + tag for tag in ("mi", "mo", "mn", "mtext", "ms"))

# -- TeX

_TEX_BODY = re.compile(r"\\begin\{document\}(.*?)\\end\{document\}", re.DOTALL)
_TEX_MATH = re.compile(r"(\$+)(.+?)\1", re.DOTALL)


def tex(source: str) -> str:
    """A publisher's whole TeX document reduced to its formula, `$x$`."""
    body = _TEX_BODY.search(source)
    text = (body[1] if body else source).strip()
    # the whole where it begins and ends with dollars: there may be more inside, as in \mbox{if $x$}
    math = _TEX_MATH.fullmatch(text) or _TEX_MATH.search(text)
    text = (math[2] if math else text).strip()
    return f"${text}$" if text else ""


# -- MathML


def mathml(math: etree._Element, out: list[str], aloud: bool) -> None:
    """Append a `math` element: the TeX that annotates it, else its tokens; `aloud`: powers and fractions with their
    signs.
    """
    for note in math.iter(_MATHML + "annotation"):
        if "tex" in note.get("encoding", "").lower() and (text := tex(note.text or "")):
            out.append(text)
            return
    if aloud:
        _speak(math, out)
    else:
        out.extend("".join(map(str, token.itertext())) for token in math.iter(*_TOKENS))


def _speak(element: etree._Element, out: list[str]) -> None:
    tag = str(element.tag).removeprefix(_MATHML)
    children = list(element)
    if element.tag in _TOKENS:
        out.append("".join(map(str, element.itertext())))
    elif tag in ("msup", "msubsup") and len(children) > 1:
        before = len(out)
        for child in children[:-1]:
            _speak(child, out)
        out.append(_raised(_read_aloud(children[-1]), "".join(out[before:]), "".join(out[-8:before])))
    elif tag == "mfrac" and len(children) == 2:
        out.append("/".join(_grouped(_read_aloud(child)) for child in children))
    elif tag == "msqrt":
        out.append("√" + _grouped("".join(map(_read_aloud, children))))
    elif tag == "mmultiscripts":  # 14C is written C, mprescripts, none, 14
        at = next((n for n, child in enumerate(children) if child.tag == _MATHML + "mprescripts"), len(children))
        for child in children[at:] + children[:at]:
            _speak(child, out)
    elif tag == "mfenced":
        separator = (element.get("separators") or ",").strip()[:1]
        out.append(element.get("open", "(") + separator.join(map(_read_aloud, children)) + element.get("close", ")"))
    elif tag not in ("annotation", "annotation-xml"):
        for child in children:
            _speak(child, out)


def _read_aloud(element: etree._Element) -> str:
    out: list[str] = []
    _speak(element, out)
    return "".join("".join(out).split())


def _raised(exponent: str, base: str, before: str) -> str:
    """A superscript of MathML; without a base of its own (10, then an empty base with 4) it is like one of the text."""
    if not base.strip():
        return power(before, exponent) or exponent
    return "^" + _grouped(exponent) if _IS_EXPONENT.search(exponent) and not _CHARGE.fullmatch(exponent) else exponent


# Degrees, primes, stars and charges (Ca2+) are no exponents.
_IS_EXPONENT = re.compile(r"[^\W_]")
_CHARGE = re.compile(r"\d*[+\-\u2212\u2013]")
_ONE_TERM = re.compile(r"[+\-\u2212\u2013]?[\w.,\u2062\u2206]+(?:[/\u2215]\w+)?|\(.*\)")


def _grouped(text: str) -> str:
    return text if _ONE_TERM.fullmatch(text) else f"({text})"


# -- powers in the text

_SIGN = r"[+\-\u2212\u2013]"
_NUMBER = rf"{_SIGN}?\d+(?:\.\d+)?"
_EXPONENT = re.compile(rf"{_NUMBER}|[\-\u2212\u2013]\w[\w.\u2206]*")
# A list with commas is one of citations, and a range is one everywhere but over a 10.
_EXPONENT_OF_10 = re.compile(rf"{_NUMBER}(?:[\-\u2212\u2013]\d+(?:\.\d+)?)?")
_TEN = re.compile(r"(?:^|[^\w.,]|[\s\d][xX])10\s*\Z")
# "IL-6", "CD4" and "2010" bear citations and no exponents; the x of "5x10" stands for a times sign.
_NAME = re.compile(r"[^\W\d_][-\u2010\u2011]?\d[\d.,]*\Z|\b(?:19|20)\d\d\Z")
_TIMES = re.compile(r"(?:^|[\s\d])[xX]\d[\d.,]*\Z")


def power(before: str, exponent: str, after: str = "", over_subscript: bool = False) -> str | None:
    """`^exponent` where a superscript over what stands `before` is a power; None where it is something else.

    Powers are numbers over a number (10^4, 2^0.5), -x over a number (2^-ΔΔCt) and ranges over 10; the 10 may stand
    apart ("10 6").
    """
    exponent = "".join(exponent.split())
    apart = before[-1:].isspace()
    ten = _TEN.search(before) and _EXPONENT_OF_10.fullmatch(exponent)
    if not ten and not (before[-1:].isdigit() and _EXPONENT.fullmatch(exponent)):
        return None
    if (apart or over_subscript) and after[:1].isalpha():
        return None  # an isotope: "10 18F-FDG scans", H2 18O
    named = _NAME.search(before.rstrip()) and not _TIMES.search(before.rstrip())
    return None if named and not over_subscript else "^" + exponent
