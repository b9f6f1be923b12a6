"""A compound figure's caption -> one text for each panel label. Pure, by rules.

Labels stand before their text ("(A) Liver. (B) Kidney."), after it ("liver (A) and kidney (B)"), as lists and ranges
("(A-C)", "panels A and B"), in brackets or bare at the start of a sentence ("a Liver. b Kidney."). Whatever the form, panels
are lettered in order: only letters that make a gapless sequence from A count as labels, which is what keeps "(n = 3)",
"(H and E)" or "A representative image" out.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

_LETTER = r"(?:[A-Za-z](?:\d|['′])?)"
_JOIN = r"(?:\s*(?:[,;&/+]|and\b|to\b|[-–—])\s*)+"
_LIST = rf"{_LETTER}(?:{_JOIN}{_LETTER}(?![A-Za-z]))*"
_NOUN = r"(?:sub-?)?(?:panel|image|picture|photo|part|section|plate|graph|frame)s?"
_SIDE = r"(?:upper|lower|top|bottom|left|right|middle|center|centre|inset)(?:[ -](?:left|right|panel|row))*"
# "(A)", "(A, B)", "(panel A)", "(left, A)", "(C, 200x)", "[A]"; the letter may close a remark: "(PSA; image C)".
_BRACKETED = re.compile(
    rf"(?:(?<![A-Za-z0-9])|(?<=[a-z]{{4}})(?![(]s))[(\[]\s*(?:{_NOUN}\s+|{_SIDE}[,:;]?\s+)?({_LIST})(?:\s*[:;,.]\s*[^()\[\]]{{0,60}}|,?\s+{_SIDE})?\s*[)\]]"
)
_CLOSING_REMARK = re.compile(rf"[;,]\s*{_NOUN}\s+({_LIST})\s*(?=\))")
# "A) text" at the start of a sentence or clause.
_HALF_BRACKET = re.compile(rf"(?:^|(?<=[\s.;,:]))({_LIST})\)(?=\s|$)")
# "A. Text", "A: text", "A, text", "A - text", "A and B, text".
_PUNCTUATED = re.compile(rf"(?:^|(?<=[.;:)]\s)|(?<=[.;:)]))({_LIST})\s*[.:,;–—-](?=\s)\s*(?=\S)")
# "panel A", "Panels B and C", "image D".
_NAMED = re.compile(rf"\b{_NOUN}\s+({_LIST})(?![A-Za-z'’])(?:\s*[:,.](?=\s))?", re.IGNORECASE)
# "a Text. b Text."
_BARE = re.compile(rf"(?:^|(?<=[.;:,)]\s)|(?<=[.;:)]))({_LIST})\s+(?=[A-Z0-9(α-ωΔ]|[a-z]{{2,}})")
_FORMS = (_BRACKETED, _HALF_BRACKET, _PUNCTUATED, _NAMED, _BARE)
# Forms that ordinary words have too.
_RISKY = (_PUNCTUATED, _BARE)
# A bracket is so surely a label that other forms must find two letters more.
_BRACKET_WORTH = 1.5
_STAIN = {"H", "E"}

_JOINED = re.compile(r"[\s,;()&]*(?:and)?[\s,;()&]*")
_CLAUSE_END = re.compile(r"(?:^|[.;:,)])\s*$")
_CLOSING = re.compile(
    r"scale|bars?\b|error bars?|data (?:are|were|represent)|values|results are|(?:original )?magnification|abbreviations?|all |\*?\s?\d+[x×*]|"
    r"asterisks?|\W*p\W|statistic|\(?\*|n ?=|ns\b|[A-Za-z0-9-]{1,8}(?:,| ?[=:]) [^.;]{3,60}(?:;|\.?$)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.;])\s+(?=[A-Z(]|\*?\s?\d+[x×*])|(?<=[a-z)]\.)(?=[A-Z][a-z])")


@dataclass(frozen=True, slots=True)
class _Mention:
    """A place that names labels; `follows`: the text it is about stands before it."""

    start: int
    end: int
    labels: tuple[str, ...]
    follows: bool | None


def subcaptions(caption: str) -> dict[str, str]:
    """The text of each labelled panel, the text common to all included; {} where the caption names no two panels.

    Args:
        caption: one line of plain text.

    Returns:
        label -> text in the labels' order, the letters as the caption writes them ("A", "b").
    """
    mentions = _settle(_merged(_mentions(caption), caption), caption)
    labels = sorted({label for mention in mentions for label in mention.labels})
    if len(labels) < 2:
        return {}
    before, own, after = _share(mentions, caption, labels)
    return {label: _tidy(" ".join((before, *own[label], after))) for label in labels}


def _mentions(caption: str) -> list[_Mention]:
    """The mentions of the form, or of all forms together, that make the longest sequence of letters from A on."""
    best: list[_Mention] = []
    best_worth = 0.0
    for upper in (True, False):
        found = [(form, _of_form(form, caption, upper)) for form in _FORMS]
        single = [(form, _in_order(some) if form in _RISKY else some) for form, some in found]
        union = _without_overlaps([(form in _RISKY, mention) for form, some in found for mention in some])
        for form, candidates in (*single, (None, union)):
            length = _sequence_length(candidates)
            worth = length + (_BRACKET_WORTH if form in (_BRACKETED, _HALF_BRACKET) else 0)
            if length > 1 and worth > best_worth:
                best_worth = worth
                last = chr(ord("A" if upper else "a") + length - 1)
                best = [m for c in candidates if (m := _limited(c, last))]
    return best


def _of_form(form: re.Pattern[str], caption: str, upper: bool) -> list[_Mention]:
    found = []
    matches = list(form.finditer(caption))
    if form is _BRACKETED:
        matches += _CLOSING_REMARK.finditer(caption)
    for match in matches:
        labels = _expand(match[1])
        if not labels or labels[0][0].isupper() != upper or set(labels) == _STAIN:
            continue
        found.append(_Mention(match.start(), match.end(), labels, _direction(form, match, caption)))
    found.sort(key=lambda mention: mention.start)
    return found


def _expand(text: str) -> tuple[str, ...]:
    """ "A-C, E" -> A, B, C, E; () where the letters differ in case or a range runs backwards."""
    labels: list[str] = []
    parts = re.findall(rf"(?<![A-Za-z]){_LETTER}(?![A-Za-z])|[-–—]|\bto\b", text)
    ranging = False
    for part in parts:
        if part in ("-", "–", "—", "to"):
            ranging = bool(labels)
            continue
        letter = part[0]
        if labels and letter.isupper() != labels[0].isupper():
            return ()
        if ranging:
            if not labels[-1] < letter:
                return ()
            labels.extend(chr(code) for code in range(ord(labels[-1]) + 1, ord(letter)))
            ranging = False
        labels.append(letter)
    return tuple(dict.fromkeys(labels))


def _direction(form: re.Pattern[str], match: re.Match[str], caption: str) -> bool | None:
    """Whether the text stands before the mention; None where the place alone does not tell."""
    if form is not _BRACKETED and form is not _NAMED:
        return False
    opens = bool(_CLAUSE_END.search(caption[: match.start()]))
    rest = caption[match.end() :].lstrip()
    closes = not rest or rest[0] in ".;,)" or rest.startswith(("and ", "or "))
    if form is _NAMED and re.match(r"(?:shows?|depicts?|represents?|illustrates?|is|are)\b", rest):
        return False
    if opens == closes:
        return None
    return closes


def _in_order(mentions: list[_Mention]) -> list[_Mention]:
    """Of bare letters, each the first after the one before it: "A" may be an article, "C." an initial."""
    return _without_overlaps([(True, mention) for mention in mentions])


def _without_overlaps(mentions: list[tuple[bool, _Mention]]) -> list[_Mention]:
    """In the order of the text; of two that share characters the first and longer stays, a risky one if it is next in line."""
    kept: list[_Mention] = []
    wanted = 0
    for risky, mention in sorted(mentions, key=lambda item: (item[1].start, item[0], -item[1].end)):
        position = ord(mention.labels[0].lower()) - ord("a")
        if (kept and mention.start < kept[-1].end) or (risky and position != wanted):
            continue
        kept.append(mention)
        wanted = max(wanted, ord(mention.labels[-1].lower()) - ord("a") + 1)
    return kept


def _merged(mentions: list[_Mention], caption: str) -> list[_Mention]:
    """ "(A) and (B) show": neighbours with nothing but a joint between them are one mention."""
    merged: list[_Mention] = []
    for mention in mentions:
        if merged and _JOINED.fullmatch(caption, merged[-1].end, mention.start):
            last = merged.pop()
            labels = tuple(dict.fromkeys((*last.labels, *mention.labels)))
            follows = mention.follows if mention.follows is not None else last.follows
            mention = _Mention(last.start, mention.end, labels, follows)
        merged.append(mention)
    return merged


def _sequence_length(mentions: list[_Mention]) -> int:
    """How many letters from A on are all named."""
    named = {label.lower() for mention in mentions for label in mention.labels}
    length = 0
    while length < 26 and chr(ord("a") + length) in named:
        length += 1
    return length


def _limited(mention: _Mention, last: str) -> _Mention | None:
    labels = tuple(label for label in mention.labels if label <= last)
    return _Mention(mention.start, mention.end, labels, mention.follows) if labels else None


def _settle(mentions: list[_Mention], caption: str) -> list[_Mention]:
    """Give the undecided mentions the direction of the majority, and of the first where there is none."""
    votes = [mention.follows for mention in mentions if mention.follows is not None]
    trailing = votes.count(True) > votes.count(False)
    if votes and votes.count(True) == votes.count(False):
        trailing = votes[0]
    if mentions and not votes:
        trailing = bool(caption[: mentions[0].start].strip(" .:;("))
    return [_Mention(m.start, m.end, m.labels, trailing if m.follows is None else m.follows) for m in mentions]


def _share(mentions: list[_Mention], caption: str, labels: list[str]) -> tuple[str, dict[str, list[str]], str]:
    """(text before all, each label's own texts, text after all): each stretch between mentions goes to one of its ends."""
    own: dict[str, list[str]] = {label: [] for label in labels}
    before = after = ""
    first = caption[: mentions[0].start]
    if mentions[0].follows:
        sentences = _SENTENCE.split(first.strip())
        before = " ".join(sentences[:-1])
        _give(own, mentions[0], sentences[-1])
    else:
        before = first
    for left, right in itertools.pairwise(mentions):
        stretch = caption[left.end : right.start]
        if left.follows == right.follows:
            if right.follows:
                # What is said after a mention's sentence is still about it; the last sentence is the next one's.
                *rest, stretch = _SENTENCE.split(stretch.lstrip(" .;,"))
                _give(own, left, " ".join(rest))
            elif _in_mid_sentence(right, caption):
                # "Staining for CD34 (B, right) shows": the sentence is B's from its start.
                *rest, start = _SENTENCE.split(stretch)
                if rest:
                    _give(own, right, start)
                    stretch = " ".join(rest)
            _give(own, right if right.follows else left, stretch)
        elif left.follows:
            _give(own, left, stretch)
        elif set(right.labels) < set(left.labels):
            _give(own, right, stretch)
        else:
            parts = _SENTENCE.split(stretch, maxsplit=1)
            _give(own, left, parts[0])
            _give(own, right, parts[-1])
    last = caption[mentions[-1].end :]
    if mentions[-1].follows:
        after = last
    else:
        stays, after = _without_closing(last, [len(_SENTENCE.split(" ".join(texts).strip())) for texts in own.values()])
        _give(own, mentions[-1], stays)
    return before, own, after


def _in_mid_sentence(mention: _Mention, caption: str) -> bool:
    opens = _CLAUSE_END.search(caption[: mention.start]) or caption[mention.end :].lstrip()[:1].isupper()
    return not opens


def _without_closing(text: str, sentences: list[int]) -> tuple[str, str]:
    """The last label's own text, and what closes the caption and is about all: scale bars, statistics, abbreviations.

    Args:
        text: from the last label to the caption's end.
        sentences: how many each label has so far; the last is likely to have no more of its own than the longest other.
    """
    parts = _SENTENCE.split(text.strip())
    usual = max([*sentences, 1])
    for k in range(1, len(parts)):
        if k >= usual or _CLOSING.match(parts[k]):
            return " ".join(parts[:k]), " ".join(parts[k:])
    return text, ""


def _give(own: dict[str, list[str]], mention: _Mention, text: str) -> None:
    for label in mention.labels:
        own[label].append(text)


def _tidy(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\s+([.,;:)])", r"\1", text)
    text = re.sub(r"\(\s+", "(", text)
    return re.sub(r"([.;,:])(?:\s*[.;,:])+", r"\1", text).strip(" ;,:")
