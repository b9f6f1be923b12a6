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
# "(A)", "(A, B)", "(A)-(C)", "(panel A)", "(panel (A))", "(left, A)", "(C, 200x)", "(C x200)", "[A]"; the letter may
# close a remark: "(PSA; C)".
BRACKETED = re.compile(
    rf"(?:{_LEAD}|(?<![A-Za-z0-9]))[(\[]({_LETTER}[)\]]\s*{_RANGE}\s*[(\[]{_LETTER})[)\]]"
    rf"|(?:{_LEAD}|(?<![A-Za-z0-9])|(?<=[a-z]{{4}})(?![(]s))[(\[]\s*(?:{_NOUN}\s+|{_SIDE}[,:;]?\s+)?({_LIST})(?:\s*[:;,.]\s*[^()\[\]]{{0,60}}|,?\s+{_SIDE}|\s+[x×]\s?\d+)?\s*[)\]]"
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
# The same within a sentence, as the items of an enumeration: "A. nerve, B. muscle, and C. bone"; see `_enumerated`.
_ITEM = re.compile(rf"(?:^|(?<=[\s(]))({_LIST})\s*([.:–—-])\s+(?=\S)")
_FIRST_ITEM = re.compile(r"(?:^|[.;:)(]\s*|\b(?:of|in|from|for|on|shows?|showing|are|is)\s+)$", re.IGNORECASE)
_NEXT_ITEM = re.compile(r"\w\W*(?:[,;]\s*(?:and\s+|or\s+)?|\s(?:and|or|&)\s+)$")
_STOP = re.compile(r"[.!?]\s+[A-Z]")
_PARTICLES = r"(?:(?:van|von|der|den|de|di|da|la|le)\s+)*"
_PERSON = re.compile(
    rf"(?:[A-Z]\.\s?)*{_PARTICLES}[A-Z][\w'’-]*[a-z]"
    r"(?:\s[A-Z][\w'’-]*\.?)?(?:\s(?:et al\.?|[JS]r\.?))*(?=\W*$)"
)
_CAPITALISED = re.compile(rf"{_PARTICLES}[A-Z][\w'’-]*(?:\s[A-Z][\w'’-]*)*|\S*")
_SENTENCE_START = re.compile(r"(?:^|[.;]\s*)$")
_SPECIES = re.compile(
    r"(?![a-z]*(?:oma|[oi]tis|osis|plasia|emia|uria)\b)(?:[a-z]{2,}(?:us|is|um|i|ae|ans|ens|ile|a)|niger)\b"
)
_INITIAL = re.compile(r"[A-Z]\.\s+[A-Z]\.?\s+[A-Z]")
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
    if form is PUNCTUATED:
        matches = [m for m in matches if not _INITIAL.match(caption, m.start())]
        known = {m.start() for m in matches}
        # "(a) Plants: A. root, B. stem. (b) ...": what is listed within a panel is none.
        outer = [mention.start for mention in of_form(BRACKETED, caption, not upper)]
        inner = outer[0] if len(outer) > 1 else len(caption)
        matches += [m for m in _enumerated(caption) if m.start() not in known and m.start() < inner]
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


def _enumerated(caption: str) -> list[re.Match[str]]:
    """Letters that follow one another before the items of one sentence, all with the same sign; not those of persons
    ("A. Smith, B. Jones") or species ("A. niger, B. cereus").
    """
    found: list[re.Match[str]] = []
    chain: list[re.Match[str]] = []
    for match in _ITEM.finditer(caption):
        if chain and _goes_on(caption, chain[-1], match):
            chain.append(match)
        elif _FIRST_ITEM.search(caption, max(0, match.start() - 12), match.start()):
            found += chain if _is_enumeration(caption, chain) else []
            chain = [match]
    return found + (chain if _is_enumeration(caption, chain) else [])


def _goes_on(caption: str, item: re.Match[str], later: re.Match[str]) -> bool:
    """Is a letter the next item's of the same enumeration?"""
    return (
        item[2] == later[2]
        and _is_run((*_expand(item[1])[-1:], *_expand(later[1])[:1]))
        and _NEXT_ITEM.search(caption, max(item.end(), later.start() - 12), later.start()) is not None
        and _STOP.search(caption, item.end(), later.start()) is None
    )


def _is_enumeration(caption: str, chain: list[re.Match[str]]) -> bool:
    """Four initials in the order of the alphabet are no chance. Two or three may be names, but not of three words, and
    where they are a sentence by themselves only with "et al.".
    """
    if len(chain) < 2 or len(chain) > 3 or chain[0][2] != ".":
        return len(chain) > 1
    ends = [match.start() for match in chain[1:]] + [len(caption)]
    items = [
        re.split(r"[,;()]|\s(?:and|or|&)\s", caption[m.end() : end])[0].strip()
        for m, end in zip(chain, ends, strict=True)
    ]
    last = _CAPITALISED.match(items[-1])
    assert last is not None  # it matches nothing too
    alone = _SENTENCE_START.search(caption, 0, chain[0].start()) and last[0] == items[-1].rstrip(".")
    items[-1] = last[0]
    persons = all(map(_PERSON.match, items)) and (not alone or any("et al" in item for item in items))
    epithets = sum(_SPECIES.match(item) is not None for item in items)
    return not persons and 2 * epithets <= len(items)


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
