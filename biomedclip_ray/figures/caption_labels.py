"""Where a caption names panels: the labels at each place, and on which side their text stands. Pure, by rules.

Labels stand before their text ("(A) Liver. (B) Kidney."), after it ("liver (A) and kidney (B)"), as lists and ranges
("(A-C)", "panels A and B"), in brackets or bare at the start of a sentence ("a Liver. b Kidney."). Whatever the form, panels
are lettered in order: only letters that make a gapless sequence from A count as labels, which is what keeps "(n = 3)",
"(H and E)" or "A representative image" out.
"""

from __future__ import annotations

import bisect
import itertools
import re
from dataclasses import dataclass, replace
from string import ascii_lowercase

_LETTER = r"(?:[A-Za-z](?:\d|['′])?)"
_RANGE = r"(?:[-–—]|to\b|through\b)"
_JOIN = rf"(?:\s*(?:[,;&/+]|and\b|{_RANGE})\s*)+"
_LIST = rf"{_LETTER}(?:{_JOIN}{_LETTER}(?![A-Za-z])){{0,25}}"
_ROMANS = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")
_NOUN = r"(?:sub-?)?(?:panel|image|picture|photo|part|section|plate|graph|frame|column|row)s?"
_SIDE = r"(?:upper|lower|top|bottom|left|right|middle|center|centre|inset)(?:[ -](?:left|right|panel|row))*"
# What begins a clause and belongs to the bracket behind it: "Panel (A) ...", "In (b), ...", "Figure 1(a) ...".
_LEAD = rf"(?:^|(?<=[.;,:]\s)|(?<=[;,]\sand\s))(?i:in\s+|{_NOUN}\s*|(?:sub-?)?fig(?:ures?|s?\.)\s*\d*\s*)"
# "(A)", "(A, B)", "(A)-(C)", "(panel A)", "(panel (A))", "(left, A)", "(C, 200x)", "[A]"; the letter may close a remark: "(PSA; C)".
_BRACKETED = re.compile(
    rf"(?:{_LEAD}|(?<![A-Za-z0-9]))[(\[]({_LETTER}[)\]]\s*{_RANGE}\s*[(\[]{_LETTER})[)\]]"
    rf"|(?:{_LEAD}|(?<![A-Za-z0-9])|(?<=[a-z]{{4}})(?![(]s))[(\[]\s*(?:{_NOUN}\s+|{_SIDE}[,:;]?\s+)?({_LIST})(?:\s*[:;,.]\s*[^()\[\]]{{0,60}}|,?\s+{_SIDE})?\s*[)\]]"
    rf"|\({_NOUN}\s+\(({_LIST})\)\)"
)
_CLOSING_REMARK = re.compile(rf"[;,]\s*(?:{_NOUN}\s+)?({_LIST})\s*(?=\))")
# "A) text" at the start of a sentence or clause.
_HALF_BRACKET = re.compile(rf"(?:^|(?<=[\s.;,:]))({_LETTER}\)\s*{_RANGE}\s*{_LETTER}|{_LIST})\)(?=\s|$|[A-Z][a-z])")
# "A. Text", "A: text", "A, text", "A - text", "A and B, text".
_PUNCTUATED = re.compile(rf"(?:^|(?<=[.;:)]\s)|(?<=[.;:)]))({_LIST})\s*[.:,;–—-](?=\s)\s*(?=\S)")
# "panel A", "Panels B and C", "image D".
_NAMED = re.compile(rf"\b{_NOUN}\s+({_LIST})(?![A-Za-z'’])(?:\s*[:,.](?=\s))?", re.IGNORECASE)
# "a Text. b Text; and c text".
_BARE = re.compile(rf"(?:^|(?<=[.;:,)]\s)|(?<=[.;:)])|(?<=[;,]\sand\s))({_LIST})\s+(?=[A-Z0-9(α-ωΔ]|[a-z]{{2,}})")
_FORMS = (_BRACKETED, _HALF_BRACKET, _PUNCTUATED, _NAMED, _BARE)
# Forms that ordinary words have too.
_RISKY = (_PUNCTUATED, _BARE)
# A bracket is so surely a label that other forms must find two letters more.
_BRACKET_WORTH = 1.5
_STAIN = {"H", "E"}
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


@dataclass(frozen=True, slots=True)
class Mention:
    """A place that names labels; `follows`: the text it is about stands before it."""

    start: int
    end: int
    labels: tuple[str, ...]
    follows: bool | None


def _before(mention: Mention, caption: str) -> str:
    """The few characters before a mention."""
    return caption[max(0, mention.start - 16) : mention.start]


def sentence_starts(caption: str, mentions: list[Mention]) -> list[int]:
    """Where sentences begin, the first aside: after a stop, with a label after one, with a label before a capital letter."""
    starts = {match.end() for match in _SENTENCE.finditer(caption)}
    for mention in mentions:
        stopped = _before(mention, caption).rstrip().endswith((".", ";"))
        if stopped or (mention.follows is False and _CAPITAL.match(caption, mention.end)):
            starts.add(mention.start)
    return sorted(starts)


def label_mentions(caption: str) -> list[Mention]:
    """The places that say which text is whose, in order, each with its direction; [] where no two panels are named.

    Places that only refer back ("bars in (A) are 5 µm") are left out.
    """
    mentions = _settled(_merged(_best(caption), caption), caption)
    mentions = _without_references(mentions, caption)
    return mentions if len(_labels(mentions)) > 1 else []


def _best(caption: str) -> list[Mention]:
    """The mentions of the form, or of all forms together, that make the longest sequence of letters from A on."""
    best: list[Mention] = []
    best_worth = 0.0
    for upper in (True, False):
        found = [(form, _of_form(form, caption, upper)) for form in _FORMS]
        single = [(form, _in_order(some) if form in _RISKY else some) for form, some in found]
        union = _without_overlaps([(form in _RISKY, mention) for form, some in found for mention in some])
        # Of two worth the same the first stays: forms together name more places.
        for form, candidates in (*_twice(single), (None, union), *reversed(single)):
            length = _sequence_length(candidates)
            worth = length + (_BRACKET_WORTH if form in (_BRACKETED, _HALF_BRACKET) else 0)
            if length > 1 and worth > best_worth:
                last = chr(ord("A" if upper else "a") + length - 1)
                limited = [m for c in candidates if (m := _limited(c, last))]
                if len(limited) > 1 or _is_clear(limited[0], caption):
                    best_worth, best = worth, limited
    return _whole_letters(best) or _romans(caption)


def _is_clear(mention: Mention, caption: str) -> bool:
    """Whether a list that stands alone is surely one of panels: "(A, B)", "panels A and B", "A and B:"; not "a, b represent"."""
    written = caption[mention.start : mention.end].rstrip()
    return written.endswith((":", ")", "]")) or _NAMED.match(written) is not None


def _twice(single: list[tuple[re.Pattern[str], list[Mention]]]) -> list[tuple[re.Pattern[str], list[Mention]]]:
    """Brackets and a second form together, where each goes through all letters: "Kidney (A-C). A: Cortex. B: ..."."""
    (brackets, first), *others = single
    length = _sequence_length(first)
    return [
        (brackets, _without_overlaps([(False, mention) for mention in (*first, *second)]))
        for form, second in others
        if form in (_HALF_BRACKET, _PUNCTUATED) and length > 1 and _sequence_length(second) == length
    ]


def _of_form(form: re.Pattern[str], caption: str, upper: bool) -> list[Mention]:
    found = []
    matches = list(form.finditer(caption))
    if form is _BRACKETED:
        inside = [range(match.start(), match.end()) for match in matches]
        matches += [
            m
            for m in _CLOSING_REMARK.finditer(caption)
            if _in_brackets(caption, m.start()) and not any(m.start() in span for span in inside)
        ]
    for match in matches:
        labels = _expand(next(filter(None, match.groups())))
        if form is _HALF_BRACKET and _in_brackets(caption, match.start()):
            continue
        if not labels or labels[0][0].isupper() != upper or set(labels) == _STAIN:
            continue
        leads = form is not _BRACKETED and form is not _NAMED
        found.append(Mention(match.start(), match.end(), labels, False if leads else None))
    found.sort(key=lambda mention: mention.start)
    return found


def _in_brackets(caption: str, at: int) -> bool:
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


def _in_order(mentions: list[Mention]) -> list[Mention]:
    """Of bare letters, each the first after the one before it: "A" may be an article, "C." an initial."""
    return _without_overlaps([(True, mention) for mention in mentions])


def _without_overlaps(mentions: list[tuple[bool, Mention]]) -> list[Mention]:
    """In the order of the text; of two that share characters the first and longer stays, a risky one if it is next in line."""
    kept: list[Mention] = []
    named: set[str] = set()
    for risky, mention in sorted(mentions, key=lambda item: (item[1].start, item[0], -item[1].end)):
        wanted = next((letter for letter in ascii_lowercase if letter not in named), None)
        if (kept and mention.start < kept[-1].end) or (risky and mention.labels[0][0].lower() != wanted):
            continue
        kept.append(mention)
        named.update(label[0].lower() for label in mention.labels)
    return kept


def _romans(caption: str) -> list[Mention]:
    """ "(i) ... (ii) ... (iii)", at least three, the first at a sentence's start: else they count things in a sentence."""
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
            found.append(Mention(match.start(), match.end(), tuple(labels), None))
    named = {label for mention in found for label in mention.labels}
    count = next((k for k, roman in enumerate(_ROMANS) if roman not in named), len(_ROMANS))
    opens = found and re.search(r"(?:^|\.)\s*$", caption[: found[0].start])
    return found if opens and count > 2 and count == len(named) else []


def _merged(mentions: list[Mention], caption: str) -> list[Mention]:
    """ "(A) and (B) show": neighbours with nothing but a joint between them are one mention."""
    merged: list[Mention] = []
    for mention in mentions:
        if merged and _JOINED.fullmatch(caption, merged[-1].end, mention.start):
            last = merged.pop()
            labels = tuple(dict.fromkeys((*last.labels, *mention.labels)))
            mention = Mention(last.start, mention.end, labels, None if last.follows is None else mention.follows)
        while _before(mention, caption).endswith("(") and caption.startswith(")", mention.end):
            mention = replace(mention, start=mention.start - 1, end=mention.end + 1)
        merged.append(mention)
    return [replace(m, follows=_follows(m, caption) if m.follows is None else m.follows) for m in merged]


def _follows(mention: Mention, caption: str) -> bool | None:
    """Whether the text stands before the mention; None where the place alone does not tell."""
    opens = bool(_OPENING.search(_before(mention, caption)))
    rest = caption[mention.end :].lstrip()
    closes = bool(_CLOSED.match(rest))
    if opens == closes:
        return False if _VERB.match(rest) else None
    return closes


def _sequence_length(mentions: list[Mention]) -> int:
    """How many letters from A on are all named."""
    named = {label[0].lower() for mention in mentions for label in mention.labels}
    length = 0
    while length < 26 and chr(ord("a") + length) in named:
        length += 1
    return length


def _limited(mention: Mention, last: str) -> Mention | None:
    labels = tuple(label for label in mention.labels if label[0] <= last)
    return replace(mention, labels=labels) if labels else None


def _whole_letters(mentions: list[Mention]) -> list[Mention]:
    """Take "B1" for B, but where the caption goes through B1, B2, ... and has no B."""
    numbers: dict[str, set[str]] = {}
    for label in _labels(mentions):
        numbers.setdefault(label[0], set()).add(label[1:])
    whole = {letter for letter, named in numbers.items() if named != set("123456789"[: len(named)]) or len(named) < 2}
    return [
        replace(m, labels=tuple(dict.fromkeys(label[0] if label[0] in whole else label for label in m.labels)))
        for m in mentions
    ]


def _settled(mentions: list[Mention], caption: str) -> list[Mention]:
    """Give the undecided the direction of their sentence, else of the majority, else of the first."""
    votes = [mention.follows for mention in mentions if mention.follows is not None]
    trailing = votes.count(True) > votes.count(False)
    if votes and votes.count(True) == votes.count(False):
        trailing = votes[0]
    if mentions and not votes:
        trailing = bool(caption[: mentions[0].start].strip(" .:;("))
    starts = sentence_starts(caption, mentions)
    settled: list[Mention] = []
    for _, group in itertools.groupby(mentions, key=lambda mention: bisect.bisect_right(starts, mention.start)):
        sentence = list(group)
        clear = {mention.follows for mention in sentence} - {None}
        usual = clear.pop() if len(clear) == 1 else trailing
        settled += [replace(m, follows=usual if m.follows is None else m.follows) for m in sentence]
    return settled


def _without_references(mentions: list[Mention], caption: str) -> list[Mention]:
    """Leave out what only refers to panels: labels that had their turn, named again in mid-sentence.

    A list may be gone through once more, label by label: "(A, B) Sections of liver (A) and kidney (B)"; and all labels
    in other lists: "liver (A, B) and kidney (C, D) of mice (A, C) and rats (B, D)".
    """
    every = _labels(mentions)
    full = next(k for k in range(len(mentions) + 1) if _labels(mentions[:k]) == every)  # all are named before this one
    leading = _labels([mention for mention in mentions[:full] if not mention.follows])
    dropped: list[Mention] = []
    kept: list[Mention] = []
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


def _labels(mentions: list[Mention]) -> set[str]:
    return {label for mention in mentions for label in mention.labels}


def _is_gone_through(mention: Mention, later: list[Mention]) -> bool:
    """Whether all labels of a list come again, alone or in shorter lists, before the next label of a caption that leads."""
    missing = set(mention.labels)
    for other in later:
        if set(other.labels) < set(mention.labels):
            missing.difference_update(other.labels)
        elif not mention.follows and not other.follows:
            break
        if not missing:
            return True
    return False
