"""What a text in the search field asks for: units of folded pieces (`folding.py`) that a caption must hold, as Lance's
queries.

Every word is asked for, as PubMed does; where no caption holds them all, captions that hold some are found. Quoted
words are a phrase. Small words are not asked for beside others, but in capitals they are acronyms: WHO grade. A letter
or number leans on its neighbour, so that "vitamin A" is not any vitamin beside any "a". Links and numbers of articles
become the words that the index holds for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product

from lance.query import BooleanQuery, FullTextQuery, MatchQuery, Occur, PhraseQuery

from biomedclip_ray.search import identifiers
from biomedclip_ray.search.folding import ACRONYM, COLUMN, MOLAR, STOP, Piece, pieces, stem, without_accents

MAX_CHARS = 2_000
"""Of what is asked; the rest is not read."""
MAX_PIECES = 64
_MAX_ALTERNATIVES = 8
_QUOTED = re.compile(r"[\"“”„]([^\"“”„]*)[\"“”„]")


@dataclass(frozen=True)
class Unit:
    """What must stand together: any one of these phrases of pieces."""

    phrases: tuple[tuple[str, ...], ...]

    def query(self) -> FullTextQuery:
        found = [
            MatchQuery(phrase[0], COLUMN) if len(phrase) == 1 else PhraseQuery(" ".join(phrase), COLUMN)
            for phrase in self.phrases
        ]
        return found[0] if len(found) == 1 else BooleanQuery([(Occur.SHOULD, query) for query in found])


@dataclass(frozen=True)
class Reading:
    """How a text is understood: units that all must be there, and such that only lift a caption."""

    required: tuple[Unit, ...]
    lifting: tuple[Unit, ...] = ()

    def all_of(self, excluded: tuple[Reading, ...] = ()) -> FullTextQuery:
        """Captions that hold every unit, and none of the excluded readings."""
        clauses = [(Occur.MUST, unit.query()) for unit in self.required]
        clauses += [(Occur.SHOULD, unit.query()) for unit in self.lifting]
        clauses += [(Occur.MUST_NOT, reading.all_of()) for reading in excluded if reading.required]
        return clauses[0][1] if len(clauses) == 1 else BooleanQuery(clauses)

    def any_of(self, excluded: tuple[Reading, ...] = ()) -> FullTextQuery:
        """Captions that hold one unit or more."""
        clauses = [(Occur.SHOULD, unit.query()) for unit in (*self.required, *self.lifting)]
        clauses += [(Occur.MUST_NOT, reading.all_of()) for reading in excluded if reading.required]
        return clauses[0][1] if len(clauses) == 1 else BooleanQuery(clauses)


def read(query: str) -> Reading:
    """What a text asks for: quoted words as a phrase, each other word for itself; any text has a reading, if an empty
    one.
    """
    text = identifiers.as_words(query[:MAX_CHARS])
    required: list[Unit] = []
    lifting: list[Unit] = []
    loose: list[str] = []
    at = 0
    for match in _QUOTED.finditer(text):
        loose.append(text[at : match.start()])
        at = match.end()
        phrase = [_alternatives(piece) for piece in pieces(match[1])[:MAX_PIECES]]
        if phrase:
            required.append(_unit(phrase))
    loose.append(text[at:])
    for part in loose:
        own, extra = _loose(part)
        required += own
        lifting += extra
    if not required:
        required, lifting = lifting, []
    return Reading(tuple(required[:MAX_PIECES]), tuple(lifting[:MAX_PIECES]))


def highlights(caption: str, reading: Reading) -> list[tuple[int, int]]:
    """Where the reading's units stand in a caption: (start, end) in characters, in order, not overlapping.

    >>> highlights("IL-6 and TNFα", read("TNF-alpha"))
    [(9, 13)]
    """
    there = pieces(caption)
    texts = [piece.text for piece in there]
    spans = []
    for unit in (*reading.required, *reading.lifting):
        for phrase in unit.phrases:
            n = len(phrase)
            for at in range(len(texts) - n + 1):
                if tuple(texts[at : at + n]) == phrase:
                    spans.append((there[at].start, there[at + n - 1].end))
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _loose(text: str) -> tuple[list[Unit], list[Unit]]:
    """Units of words without quotes: required, and lifting (small words with the one before them)."""
    groups: list[list[Piece]] = []
    end = -1
    for piece in pieces(text)[:MAX_PIECES]:
        glued = bool(groups) and not re.search(r"\s", text[end : piece.start])
        # A comparison that stands alone belongs to what it compares with.
        follows = bool(groups) and all(p.sign for p in groups[-1])
        if glued or follows or (piece.text in ("%", "+") and groups):
            groups[-1].append(piece)
        else:
            groups.append([piece])
        end = piece.end
    small = [len(group) == 1 and _is_small(group[0], first=n == 0) for n, group in enumerate(groups)]
    only_small = all(small)
    required, lifting = [], []
    for n, group in enumerate(groups):
        unit = [_alternatives(piece, alone=only_small) for piece in group]
        if small[n] and not only_small:
            if n:
                lifting.append(_unit([_alternatives(groups[n - 1][-1]), *unit]))
        elif len(group) == 1 and len(groups) > 1 and _leans(group[0]):
            required.append(_beside(groups, small, n))
        else:
            required.append(_unit(unit))
    return required, lifting


def _is_small(piece: Piece, first: bool) -> bool:
    """A small word written small; only the first of a sentence may begin with a capital ("vitamin A" means A)."""
    return piece.text in STOP and (
        piece.source.islower() or (first and piece.source[1:].islower()) or (piece.source == "A" and first)
    )


def _leans(piece: Piece) -> bool:
    """A letter or number means something only beside its neighbour: vitamin A, T cells, type 2."""
    return len(piece.source) == 1 or piece.source[0].isdecimal()


def _beside(groups: list[list[Piece]], small: list[bool], n: int) -> Unit:
    own = _alternatives(groups[n][0])
    phrases: list[tuple[str, ...]] = []
    if n:
        phrases += _unit([_alternatives(groups[n - 1][-1]), own]).phrases
    if n + 1 < len(groups) and not small[n + 1]:
        phrases += _unit([own, _alternatives(groups[n + 1][0])]).phrases
    return Unit(tuple(dict.fromkeys(phrases))) if phrases else _unit([own])


def _alternatives(piece: Piece, alone: bool = False) -> tuple[str, ...]:
    """The pieces of a caption that one of the question may mean: a word in small letters may be anybody's acronym."""
    found = [piece.text]
    source = without_accents(piece.source)
    acronym = source.isupper() and 1 < len(source) <= ACRONYM
    lower = source.casefold()
    if source.isalpha() and source.isascii() and piece.text != source:
        found.append(lower)
        if not (acronym and lower.endswith("s")):  # AIDS is no plural
            found.append(stem(lower))
    if source in MOLAR and piece.text != source:
        found.append(source)  # asked for without a number, so it may be either unit
    if alone and piece.text in STOP:
        found.append(piece.text.upper())
    number = identifiers.NUMBER_ALONE.fullmatch(piece.source)
    if number:
        found.append(f"PMID{number[1]}")
    return tuple(dict.fromkeys(found))


def _unit(alternatives: list[tuple[str, ...]]) -> Unit:
    while len(alternatives) > 1 and _count(alternatives) > _MAX_ALTERNATIVES:
        longest = max(range(len(alternatives)), key=lambda n: len(alternatives[n]))
        alternatives = [*alternatives[:longest], alternatives[longest][:1], *alternatives[longest + 1 :]]
    return Unit(tuple(product(*alternatives)))


def _count(alternatives: list[tuple[str, ...]]) -> int:
    total = 1
    for each in alternatives:
        total *= len(each)
    return total
