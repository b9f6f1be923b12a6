"""The forms in which captions write panels' labels, and which labels one such place names: "(A-C, E)" -> A, B, C, E.
Pure.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

_LETTER = r"(?:[A-Za-z](?:\d|['′])?)"
_RANGE = r"(?:[-–—]|to\b|through\b)"
_JOIN = rf"(?:\s*(?:[,;&/+]|and\b|{_RANGE})\s*)+"
_LIST = rf"{_LETTER}(?:{_JOIN}{_LETTER}(?![A-Za-z])){{0,25}}"
_NOUN = r"(?:sub-?)?(?:panel|image|picture|photo|part|section|plate|graph|frame|column|row)s?"
_SIDE = r"(?:upper|lower|top|bottom|left|right|middle|center|centre|inset)(?:[ -](?:left|right|panel|row))*"
# What begins a clause and belongs to the bracket behind it: "Panel (A) ...", "In (b), ...", "Figure 1(a) ...".
_LEAD = rf"(?:^|(?<=[.;,:]\s)|(?<=[;,]\sand\s))(?i:in\s+|{_NOUN}\s*|(?:sub-?)?fig(?:ures?|s?\.)\s*\d*\s*)"
# "(A)", "(A, B)", "(A)-(C)", "(panel A)", "(panel (A))", "(left, A)", "(C, 200x)", "[A]"; the letter may close a
# remark: "(PSA; C)".
BRACKETED = re.compile(
    rf"(?:{_LEAD}|(?<![A-Za-z0-9]))[(\[]({_LETTER}[)\]]\s*{_RANGE}\s*[(\[]{_LETTER})[)\]]"
    rf"|(?:{_LEAD}|(?<![A-Za-z0-9])|(?<=[a-z]{{4}})(?![(]s))[(\[]\s*(?:{_NOUN}\s+|{_SIDE}[,:;]?\s+)?({_LIST})(?:\s*[:;,.]\s*[^()\[\]]{{0,60}}|,?\s+{_SIDE})?\s*[)\]]"
    rf"|\({_NOUN}\s+\(({_LIST})\)\)"
)
# "(A, B Hematoxylin)": labels with a remark, or, where these panels are named elsewhere too, a remark alone.
_REMARKED = re.compile(
    rf"(?<![A-Za-z0-9])\(({_LETTER}(?:\s*,\s*{_LETTER}(?![A-Za-z]))+)\s+(?!and\b|or\b)[A-Za-z]{{3}}[^()]{{0,60}}\)"
)
_CLOSING_REMARK = re.compile(rf"[;,]\s*(?:{_NOUN}\s+)?({_LIST})\s*(?=\))")
# "A) text" at the start of a sentence or clause.
HALF_BRACKET = re.compile(rf"(?:^|(?<=[\s.;,:]))({_LETTER}\)\s*{_RANGE}\s*{_LETTER}|{_LIST})\)(?=\s|$|[A-Z][a-z])")
# "A. Text", "A: text", "A, text", "A - text", "A and B, text".
PUNCTUATED = re.compile(rf"(?:^|(?<=[.;:)]\s)|(?<=[.;:)]))({_LIST})\s*[.:,;–—-](?=\s)\s*(?=\S)")
# "panel A", "Panels B and C", "image D".
NAMED = re.compile(rf"\b{_NOUN}\s+({_LIST})(?![A-Za-z'’])(?:\s*[:,.](?=\s))?", re.IGNORECASE)
# "a Text. b Text; and c text"; before a magnification wherever it stands, "low (a x10) and high (b x40) power".
BARE = re.compile(
    rf"(?:(?:^|(?<=[.;:,)]\s)|(?<=[.;:)])|(?<=[;,]\sand\s))({_LIST})\s+(?=[A-Z0-9(α-ωΔ]|[a-z]{{2,}}|[x×]\s?\d)|(?<=[\s(])([A-Za-z])[:,]?\s(?=[x×]\s?\d))"
)
FORMS = (BRACKETED, HALF_BRACKET, PUNCTUATED, NAMED, BARE)
_STAIN = {"H", "E"}


@dataclass(frozen=True, slots=True)
class LabelMention:
    """A place that names labels; `follows`: the text it is about stands before it."""

    start: int
    end: int
    labels: tuple[str, ...]
    follows: bool | None


def of_form(form: re.Pattern[str], caption: str, upper: bool) -> list[LabelMention]:
    found = []
    matches = list(form.finditer(caption))
    if form is BRACKETED:
        matches = _remarked(caption, matches)
        inside = [range(match.start(), match.end()) for match in matches]
        matches += [
            m
            for m in _CLOSING_REMARK.finditer(caption)
            if in_brackets(caption, m.start()) and not any(m.start() in span for span in inside)
        ]
    for match in matches:
        labels = _expand(next(filter(None, match.groups())))
        if form is HALF_BRACKET and in_brackets(caption, match.start()):
            continue
        if not labels or labels[0][0].isupper() != upper or set(labels) == _STAIN:
            continue
        leads = form is not BRACKETED and form is not NAMED
        found.append(LabelMention(match.start(), match.end(), labels, False if leads else None))
    found.sort(key=lambda mention: mention.start)
    return found


def _remarked(caption: str, matches: list[re.Match[str]]) -> list[re.Match[str]]:
    """The same brackets, but "(A, B Hematoxylin)" for A and B; for A alone, or for none, where others
    name B or both.
    """
    listed = {m.start(): m for m in _REMARKED.finditer(caption) if _is_run(_expand(m[1]))}
    plain = [m for m in matches if m.start() not in listed]
    named = {label for m in plain for label in _expand(next(filter(None, m.groups())))}
    by_start = {m.start(): m for m in matches}
    for start, match in listed.items():
        labels = _expand(match[1])
        if named.isdisjoint(labels):
            plain.append(match)
        elif labels[0] not in named and start in by_start:
            plain.append(by_start[start])
    return plain


def _is_run(labels: tuple[str, ...]) -> bool:
    """Do they follow one another in the alphabet?"""
    return all(ord(b[0]) == ord(a[0]) + 1 for a, b in itertools.pairwise(labels)) and len(labels) > 1


def in_brackets(caption: str, at: int) -> bool:
    """Whether a bracket is open there."""
    return caption.rfind("(", 0, at) > caption.rfind(")", 0, at)


def _expand(text: str) -> tuple[str, ...]:
    """ "A-C, E" -> A, B, C, E; "B1-B3" -> B1, B2, B3; () where the letters differ in case or a range runs backwards."""
    labels: list[str] = []
    parts = re.findall(rf"(?<![A-Za-z]){_LETTER}(?![A-Za-z])|{_RANGE}", text)
    ranging = False
    for part in parts:
        if re.fullmatch(_RANGE, part):
            ranging = bool(labels)
            continue
        label = part.rstrip("'′")
        if labels and label[0].isupper() != labels[0][0].isupper():
            return ()
        if ranging:
            last = labels[-1]
            if not last < label:
                return ()
            if last[0] != label[0]:
                labels.extend(chr(code) for code in range(ord(last[0]) + 1, ord(label[0])))
            elif len(last) > 1:
                labels.extend(f"{label[0]}{number}" for number in range(int(last[1]) + 1, int(label[1])))
            ranging = False
        labels.append(label)
    return tuple(dict.fromkeys(labels))
