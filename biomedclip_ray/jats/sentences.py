"""The sentences around marked places of a text. Pure.

Trade-off: sentences are found by rules (abbreviations, initials, what follows the stop), not by a model: a wrong
boundary costs half a sentence of context, a model would cost more than parsing the article does.
"""

from __future__ import annotations

import re

# XML cannot hold these characters, so they can mark places in its text: a citing xref, and the end of a sentence.
MARK, END = "\x00", "\x01"


def around_marks(text: str) -> list[str]:
    """The sentence around each mark of a text, in order, without marks and with white space normalised."""
    stops = list(_STOP.finditer(text))
    sentences = []
    begin = end = after = 0
    at = text.find(MARK)
    while at >= 0:
        if at >= end:
            while after < len(stops) and stops[after].end() <= at:
                after += 1
            before, behind = range(after - 1, -1, -1), range(after, len(stops))
            begin = next((stops[n].end() for n in before if _ends_sentence(text, stops[n])), 0)
            end = next((stops[n].end() for n in behind if _ends_sentence(text, stops[n])), len(text))
            sentence = " ".join(text[begin:end].replace(MARK, "").replace(END, "").split())
        sentences.append(sentence)
        at = text.find(MARK, at + 1)
    return sentences


_STOP = re.compile(
    r"""[.!?\x01](?: (?<=\x01) | ["'\u201d\u2019)\]]*\s+(?=["'\u201c\u2018(\[\x00]*[^\W_a-z]) )""", re.VERBOSE
)
_BEFORE_WORD = "([\"'\u201c\u2018" + MARK + END
_NEXT_WORD = re.compile(r"\w+")
_ABBREVIATIONS = frozenset(
    "fig figs figure ref refs eq eqs eqn eqns no nos cf vs ca approx dr mr mrs ms prof st sp spp var subsp ssp suppl "
    "supp"
    " supplem tab tabs vol pp p ch chap sec sect inc ltd co corp dept univ resp viz ext e.g eg i.e ie n.b a.k.a incl "
    "excl"
    " temp conc avg exp expt jan feb mar apr jun jul aug sep sept oct nov dec jr sr".split()
)
# After these a stop may or may not end the sentence; the next word tells.
_UNSURE = frozenset(("al", "etc"))
_STARTERS = frozenset(
    "A After All Also Although An As At Because Both But By Consistent Each Finally First For From Further Furthermore"
    " Hence Here However If Importantly In Interestingly It Its Moreover No Notably On Our Overall Second Several Since"
    " Similarly Some Such Taken That The Their Then There Therefore These They This Those Thus To Together Using We "
    "When"
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
