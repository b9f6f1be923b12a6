"""Where a caption names panels: the labels at each place, and on which side their text stands. Pure, by rules.

Labels stand before their text ("(A) Liver. (B) Kidney."), after it ("liver (A) and kidney (B)"), as lists and ranges
("(A-C)", "panels A and B"), in brackets or bare at the start of a sentence ("a Liver. b Kidney."). Whatever the form,
panels are lettered in order: only letters that make a sequence from A count as labels, with one letter missing at most
at a time and not among the first three, which is what keeps "(n = 3)", "(H and E)" or "A representative image" out.
"""

from __future__ import annotations

import bisect
import itertools
import re
from dataclasses import replace
from string import ascii_lowercase, ascii_uppercase

from biomedclip_ray.figures.label_forms import (
    BARE,
    BRACKETED,
    FORMS,
    HALF_BRACKET,
    NAMED,
    PUNCTUATED,
    LabelMention,
    in_brackets,
    of_form,
)

_ROMANS = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")
# Forms that ordinary words have too.
_RISKY = (PUNCTUATED, BARE)
# A bracket is so surely a label that other forms must find two letters more.
_BRACKET_WORTH = 1.5
_ROMAN = re.compile(r"(?:\(|(?<=\s)|^)((?:x?i[xv]|x?v?i{1,3}|v|x)(?:\s*[-–,]\s*(?:x?i[xv]|x?v?i{1,3}|v|x))*)\)(?=\W|$)")

_JOINED = re.compile(r"[\s,;()&]*(?:and)?[\s,;()&]*")
_OPENING = re.compile(r"(?:^|[.;:,]\)?|[;,]?\s(?:and|or|versus|vs\.?))\s*$")
_CLOSED = re.compile(r"(?:\([^()]*\)\s*)?(?:$|[.;,)]|(?:and|or|versus|vs)\b)")
_VERB = re.compile(r"(?:shows?|depicts?|represents?|illustrates?|is|are)\b")
_CAPITAL = re.compile(r"\s*[A-Z][a-z]+\b")
_SENTENCE = re.compile(
    r"(?<!\bFig\.)(?<!\bspp\.)(?<!\bsp\.)(?<!\bvs\.)(?<!\bRef\.)(?<!\bNo\.)(?<=[.;])\s+(?=[A-Z(]|\*?\s?\d+[x×*])"
    r"|(?<=[a-z)]\.)(?=[A-Z][a-z])"
)


def _before(mention: LabelMention, caption: str) -> str:
    """The few characters before a mention."""
    return caption[max(0, mention.start - 16) : mention.start]


def sentence_starts(caption: str, mentions: list[LabelMention]) -> list[int]:
    """Where sentences begin, the first aside: after a stop that is no label's, with a label after one, with a label
    before a capital letter.
    """
    ends = {mention.end for mention in mentions}
    starts = {match.end() for match in _SENTENCE.finditer(caption)} - ends
    starts = {start for start in starts if not in_brackets(caption, start)}
    for mention in mentions:
        stopped = _before(mention, caption).rstrip().endswith((".", ";"))
        if stopped or (mention.follows is False and _CAPITAL.match(caption, mention.end)):
            starts.add(mention.start)
    return sorted(starts)


def label_mentions(caption: str) -> list[LabelMention]:
    """The places that say which text is whose, in order, each with its direction; [] where no two panels are named.

    Places that only refer back ("bars in (A) are 5 µm") are left out.
    """
    mentions = _settled(_merged(_best(caption), caption), caption)
    mentions = _without_references(mentions, caption)
    return mentions if len(_labels(mentions)) > 1 else []


def _best(caption: str) -> list[LabelMention]:
    """The mentions of the form, or of all forms together, that make the longest sequence of letters from A on."""
    best: list[LabelMention] = []
    best_worth = 0.0
    for upper in (True, False):
        found = [(form, of_form(form, caption, upper)) for form in FORMS]
        single = [(form, _in_order(some) if form in _RISKY else some) for form, some in found]
        union = _without_overlaps([(form in _RISKY, mention) for form, some in found for mention in some])
        sure = _without_overlaps(
            [(form in _RISKY, m) for form, some in found for m in some if _is_sure(form, m, caption)]
        )
        # Of two worth the same the first stays: forms together name more places.
        for form, candidates in (*_twice(single, caption), (None, union), *reversed(single), (BRACKETED, sure)):
            candidates = _without_grades(candidates)
            length, last = _sequence(candidates, caption)
            worth = length + (_BRACKET_WORTH if form in (BRACKETED, HALF_BRACKET) else 0)
            if length > 1 and worth > best_worth:
                limited = [m for c in candidates if (m := _limited(c, last if upper else last.lower()))]
                if len(limited) > 1 or _is_clear(limited[0], caption):
                    best_worth, best = worth, limited
    return _whole_letters(best) or _romans(caption)


def _is_sure(form: re.Pattern[str], mention: LabelMention, caption: str) -> bool:
    """Brackets, and letters with a colon or in front of a sentence: forms that one caption mixes, "A) Liver. B) Kidney.
    C: Lung. D. Skin".
    """
    if form in (BRACKETED, HALF_BRACKET):
        return True
    if form is not PUNCTUATED:
        return False
    opens = caption[: mention.start].rstrip().endswith((".", ";")) and _CAPITAL.match(caption, mention.end)
    return caption[mention.start : mention.end].rstrip().endswith(":") or bool(opens)


def _is_clear(mention: LabelMention, caption: str) -> bool:
    """Whether a list that stands alone is surely one of panels: "(A, B)", "panels A and B", "A and B:"; not "a, b
    represent".
    """
    written = caption[mention.start : mention.end].rstrip()
    return written.endswith((":", ")", "]")) or NAMED.match(written) is not None


def _twice(
    single: list[tuple[re.Pattern[str], list[LabelMention]]], caption: str
) -> list[tuple[re.Pattern[str], list[LabelMention]]]:
    """Brackets and a second form together, where each goes through all letters: "Kidney (A-C). A: Cortex. B: ..."."""
    (brackets, first), *others = single
    length, _ = _sequence(first, caption)
    return [
        (brackets, _without_overlaps([(False, mention) for mention in (*first, *second)]))
        for form, second in others
        if form in (HALF_BRACKET, PUNCTUATED, BARE)
        and length > 1
        and _sequence(second, caption)[0] == length
        and (form is not BARE or all(_CAPITAL.match(caption, mention.end) for mention in second))
    ]


def _in_order(mentions: list[LabelMention]) -> list[LabelMention]:
    """Of bare letters, each the first after the one before it: "A" may be an article, "C." an initial."""
    return _without_overlaps([(True, mention) for mention in mentions])


def _without_overlaps(mentions: list[tuple[bool, LabelMention]]) -> list[LabelMention]:
    """In the order of the text; of two that share characters the first and longer stays, a risky one if it is next in
    line.
    """
    kept: list[LabelMention] = []
    named: set[str] = set()
    for risky, mention in sorted(mentions, key=lambda item: (item[1].start, item[0], -item[1].end)):
        wanted = next((letter for letter in ascii_lowercase if letter not in named), None)
        if (kept and mention.start < kept[-1].end) or (risky and mention.labels[0][0].lower() != wanted):
            continue
        kept.append(mention)
        named.update(label[0].lower() for label in mention.labels)
    return kept


def _romans(caption: str) -> list[LabelMention]:
    """ "(i) ... (ii) ... (iii)", at least three, the first at a sentence's start: else they count things
    in a sentence.
    """
    found = []
    for match in _ROMAN.finditer(caption):
        ends = re.findall(r"[ivx]+|[-–]", match[1])
        labels: list[str] = []
        for k, end in enumerate(ends):
            if end in "-–":
                first, last = _ROMANS.index(ends[k - 1]), _ROMANS.index(ends[k + 1]) if ends[k + 1] in _ROMANS else 0
                labels.extend(_ROMANS[first + 1 : last])
            elif end in _ROMANS:
                labels.append(end)
        if labels:
            found.append(LabelMention(match.start(), match.end(), tuple(labels), None))
    named = {label for mention in found for label in mention.labels}
    count = next((k for k, roman in enumerate(_ROMANS) if roman not in named), len(_ROMANS))
    opens = found and re.search(r"(?:^|\.)\s*$", caption[: found[0].start])
    return found if opens and count > 2 and count == len(named) else []


def _merged(mentions: list[LabelMention], caption: str) -> list[LabelMention]:
    """ "(A) and (B) show": neighbours with nothing but a joint between them are one mention."""
    merged: list[LabelMention] = []
    for mention in mentions:
        if merged and _JOINED.fullmatch(caption, merged[-1].end, mention.start):
            last = merged.pop()
            labels = tuple(dict.fromkeys((*last.labels, *mention.labels)))
            mention = LabelMention(last.start, mention.end, labels, None if last.follows is None else mention.follows)
        while _before(mention, caption).endswith("(") and caption.startswith(")", mention.end):
            mention = replace(mention, start=mention.start - 1, end=mention.end + 1)
        merged.append(mention)
    return [replace(m, follows=_follows(m, caption) if m.follows is None else m.follows) for m in merged]


def _follows(mention: LabelMention, caption: str) -> bool | None:
    """Whether the text stands before the mention; None where the place alone does not tell."""
    opens = bool(_OPENING.search(_before(mention, caption)))
    rest = caption[mention.end :].lstrip()
    closes = bool(_CLOSED.match(rest))
    if opens == closes:
        return False if _VERB.match(rest) else None
    return closes


def _sequence(mentions: list[LabelMention], caption: str) -> tuple[int, str]:
    """(how many letters from A on are named, the last of them); one may be missing after the third, as J often is, or
    after the second where two more follow.
    """
    first: dict[str, LabelMention] = {}
    for mention in mentions:
        for label in mention.labels:
            first.setdefault(label[0].upper(), mention)
    count, last = 0, ""
    for letter, following, later in zip(
        ascii_uppercase, ascii_uppercase[1:] + " ", ascii_uppercase[2:] + "  ", strict=True
    ):
        if letter in first:
            count, last = count + 1, letter
        elif (
            count < (2 if later in first else 3)
            or following not in first
            or not _goes_on(first[last], first[following], later in first, caption)
        ):
            break
    return count, last


def _goes_on(mention: LabelMention, later: LabelMention, again: bool, caption: str) -> bool:
    """Is a list gone on with after a missing letter: both before their text, or behind it and one more comes?"""
    opens, also = (bool(_OPENING.search(_before(each, caption))) for each in (mention, later))
    return mention.start < later.start and opens == also and (opens or again)


def _without_grades(mentions: list[LabelMention]) -> list[LabelMention]:
    """Leave out "(G5)", a grade or a group: one letter's numbers that do not begin with 1, or a 1 with nothing beside
    it.
    """
    numbers: dict[str, set[str]] = {}
    for label in _labels(mentions):
        numbers.setdefault(label[0], set()).add(label[1:])
    ones = [letter for letter, named in numbers.items() if named == {"1"}]
    panels = {
        letter
        for letter, named in numbers.items()
        if {"1", "2"} <= named or (letter in ones and (len(ones) > 1 or chr(ord(letter) + 1) in numbers))
    }
    return [
        m
        for m in mentions
        if len({label[0] for label in m.labels}) > 1
        or "" in {label[1:] for label in m.labels}
        or m.labels[0][0] in panels
    ]


def _limited(mention: LabelMention, last: str) -> LabelMention | None:
    labels = tuple(label for label in mention.labels if label[0] <= last)
    return replace(mention, labels=labels) if labels else None


def _whole_letters(mentions: list[LabelMention]) -> list[LabelMention]:
    """Take "B1" for B, but where the caption goes through B1, B2, ... and has no B."""
    numbers: dict[str, set[str]] = {}
    for label in _labels(mentions):
        numbers.setdefault(label[0], set()).add(label[1:])
    whole = {letter for letter, named in numbers.items() if named != set("123456789"[: len(named)]) or len(named) < 2}
    return [
        replace(m, labels=tuple(dict.fromkeys(label[0] if label[0] in whole else label for label in m.labels)))
        for m in mentions
    ]


def _settled(mentions: list[LabelMention], caption: str) -> list[LabelMention]:
    """Give the undecided the direction of their sentence, else of the majority, else of the first."""
    votes = [mention.follows for mention in mentions if mention.follows is not None]
    trailing = votes.count(True) > votes.count(False)
    if votes and votes.count(True) == votes.count(False):
        trailing = votes[0]
    if mentions and not votes:
        trailing = bool(caption[: mentions[0].start].strip(" .:;("))
    starts = sentence_starts(caption, mentions)
    settled: list[LabelMention] = []
    for _, group in itertools.groupby(mentions, key=lambda mention: bisect.bisect_right(starts, mention.start)):
        sentence = list(group)
        clear = {mention.follows for mention in sentence} - {None}
        usual = clear.pop() if len(clear) == 1 else trailing
        settled += [replace(m, follows=usual if m.follows is None else m.follows) for m in sentence]
    return settled


def _without_references(mentions: list[LabelMention], caption: str) -> list[LabelMention]:
    """Leave out what only refers to panels: labels that had their turn, named again in mid-sentence.

    A list may be gone through once more, label by label: "(A, B) Sections of liver (A) and kidney (B)"; and all labels
    in other lists: "liver (A, B) and kidney (C, D) of mice (A, C) and rats (B, D)".
    """
    every = _labels(mentions)
    full = next(k for k in range(len(mentions) + 1) if _labels(mentions[:k]) == every)  # all are named before this one
    leading = _labels([mention for mention in mentions[:full] if not mention.follows])
    dropped: list[LabelMention] = []
    kept: list[LabelMention] = []
    named: set[str] = set()
    lists: list[tuple[set[str], set[str]]] = []  # (labels, those of them that came again)
    for k, mention in enumerate(mentions):
        labels = set(mention.labels)
        opened = next((each for each in reversed(lists) if labels < each[0] and not labels <= each[1]), None)
        opens = not mention.follows and _OPENING.search(_before(mention, caption))
        through = _is_gone_through(mention, mentions[k + 1 :])
        if opened is not None:
            opened[1].update(labels)
        elif not through:
            if (labels <= named and not opens) or (mention.follows and leading == every):
                if mention.follows and k >= full:
                    dropped.append(mention)
                continue
            lists = lists if mention.follows else []
        if through:
            lists.append((labels, set()))
        named |= labels
        kept.append(mention)
    if _labels(dropped) == every and any(_follows(mention, caption) for mention in dropped):
        kept = sorted((*kept, *dropped), key=lambda mention: mention.start)
    return kept


def _labels(mentions: list[LabelMention]) -> set[str]:
    return {label for mention in mentions for label in mention.labels}


def _is_gone_through(mention: LabelMention, later: list[LabelMention]) -> bool:
    """Whether all labels of a list come again, alone or in shorter lists, before the next label of a caption that
    leads.
    """
    missing = set(mention.labels)
    for other in later:
        if set(other.labels) < set(mention.labels):
            missing.difference_update(other.labels)
        elif not mention.follows and not other.follows:
            break
        if not missing:
            return True
    return False
