"""A figure's caption -> the text that trains and is searched, and the language it is in. Pure.

`caption` is lossless and stays; what is made here is what a person would read: encoding accidents repaired where that
is provable, citation brackets that lost their numbers dropped, white space clean. Doubtful repairs are left alone: a
wrong letter that is rare costs less than a right one that is changed.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

import ftfy

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾", "0123456789+-()")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎", "0123456789+-()")
_SUPERSCRIPT_RUN = re.compile(r"(?<=\d)[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SPACES = re.compile(r"\s+")
# Zero-width characters and the invisible operators of MathML; a soft hyphen marks where a line could have been broken.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufffc]")
# "[]", "( ; )", "[, -]": what is left of citations whose numbers were links. "(-)" is a sign and "f()" a function.
_EMPTY_BRACKETS = re.compile(r"\s*\[[\s,;–-]*\]|(?:\s+|^)\((?!\s*[–-]\s*\))[\s,;–-]*\)")
_LEAD_PUNCTUATION = re.compile(r"^[\s.:;,|\-–—]+")
# What UTF-8 read as Mac Roman looks like where the whole string is not of that kind: three characters that begin with
# the byte E2 (punctuation, arrows, mathematics), or a capital or small OE ligature before a sign that no word has
# (Greek).
_MAC_RUN = re.compile(
    "‚[ÄÅÇÉÑÖÜáàâäãåçéèêë][Ä-üƒ†°¢£§•¶ß®©™´¨≠ÆØ∞±≤≥¥µ∂∑∏π∫ªºΩæø]|[Œœ][†°¢£§•¶ß®©™´¨≠∞±≤≥¥µ∂∑∏π∫ªºΩ]|√ó"
)
# Letters and signs that English biomedical text holds; a "repair" that gives others (Armenian, Hebrew, ...) is chance.
_PLAUSIBLE = ((0xA0, 0xFF), (0x391, 0x3D6), (0x2000, 0x23FF), (0x2500, 0x26FF), (0x2A00, 0x2AFF))
# What Mac Roman can hold: a real sign that it cannot (a box drawing, a beta) ends one stretch and begins the next.
_MAC_STRETCH = re.compile(f"[\x00-\x7f{re.escape(bytes(range(0x80, 0x100)).decode('mac_roman'))}]+")
# A root of pi, and square or cubic angstroms, are what they look like: \u221a\u03c0 would be a letter, \u00c5\u00b2
# another.
_ROOT = re.compile(r"(?<![^\W\d_])√[πΩµ∂∑∏∫]")
_SQUARED = re.compile("(?<![^\\W\\d_])([ÅØ])(?=[²³¹°±])")
_KEPT = {"Å": "\ue000", "Ø": "\ue001"}

_SCRIPTS = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("zh", re.compile("[\u4e00-\u9fff]")),
    ("ru", re.compile("[\u0430-\u044f]")),
    ("ar", re.compile("[\u0620-\u064a]")),
    ("he", re.compile("[\u05d0-\u05ea]")),
)
_SCRIPT_SHARE = 0.25
# Where one language may give way to another: behind a sentence, at a stroke, where the script changes.
_PIECE = re.compile(
    r"\s+[/|–—]\s+|(?<=[.;:?!])\s+|(?<=[。！？；：])\s*"
    "|(?<=[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af\u0430-\u044f])\\s+(?=[A-Z][a-z]+ [a-z])"
    "|(?<=[a-z])\\s+(?=[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af\u0410-\u044f]{2})"
)
# Single letters are panels before they are Portuguese.
_WORD = re.compile(r"[^\W\d_]{2,}")
# So many words must speak for another language before English is given up.
_FOREIGN_WORDS = 3
# From so many words on a library is asked.
_ENOUGH_WORDS = 10
_STOP_WORDS = {
    "en": "the of and in with for to from by is are was were at as on that after between each all or not an which this",
    "fr": "le la les des du de et dans avec pour par est sont une un sur en au aux entre après chaque chez ou que qui",
    "de": "der die das und in mit für von zu im ist sind den dem ein eine bei nach zwischen auf oder nicht als des "
    "wurde",
    "es": "el la los las de del y en con para por es son una un al entre después cada se que o no como su",
    "pt": "o a os as de do da dos das e em com para por é são uma um no na ao entre após cada que ou não",
    "it": "il lo la gli le di del della dei e in con per da è sono una un al nel tra dopo ogni che o non",
    "nl": "de het een van en in met voor door is zijn op te bij na tussen elke of niet aan uit als wordt",
    "pl": "i w z na do od po przez dla jest są oraz się nie między u o lub grupa",
    "tr": "ve bir ile bu için olan göre sonra arasında olarak da de her veya",
}
_LANGUAGE_WORDS = {code: frozenset(words.split()) for code, words in _STOP_WORDS.items()}
# In small letters: "Par." and "EN" are abbreviations; "et al." and "no" stand in English too.
_OTHER_WORDS = {
    code: words - _LANGUAGE_WORDS["en"] - {"al", "no"} for code, words in _LANGUAGE_WORDS.items() if code != "en"
}
_ENGLISH_ALONE = frozenset("the of and with from were was which this between".split())


def training_text(caption: str, label: str | None = None) -> str:
    """What trains and is searched; one line, without white space at its ends, "" for an empty caption.

    Args:
        caption: the caption's plain text. Which digits were superscript is known to the XML alone: give the text in
            which the parser has written them ("10^4") and left superscript citations out, where there is one.
        label: the figure's label; dropped from the start of the caption where it is repeated there.
    """
    text = repair(caption)
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^" + run[0], text)
    text = text.translate(_SUPERSCRIPTS).translate(_SUBSCRIPTS)
    text = _INVISIBLE.sub("", text)
    text = _EMPTY_BRACKETS.sub("", text)
    text = _SPACES.sub(" ", text).strip()
    text = re.sub(r" ([.,;:])(?= |$)", r"\1", text)
    return _without_label(text, label)


def text_sha256(text: str) -> str:
    """By which two texts are the same, whatever their case and white space."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


def repair(text: str) -> str:
    """Undo provable encoding accidents: UTF-8 once read as Mac Roman, Latin-1, Windows-1252 and the like.

    Each stretch that Mac Roman can hold if it is one accident, else the sequences that cannot be anything else.
    "Muñoz", "l'été", box drawings, "5 Å²" and "2/√π" stay.
    """
    if text.isascii():
        return text
    text = _MAC_STRETCH.sub(_repair_stretch, text)
    text = ftfy.fix_encoding(_SQUARED.sub(lambda sign: _KEPT[sign[1]], text))
    for sign, kept in _KEPT.items():
        text = text.replace(kept, sign)
    return unicodedata.normalize("NFC", text)


def language(text: str) -> str | None:
    """ISO 639-1 code of the text's language: by script, from ten words on by py3langid, below by the commonest words.

    None where nothing tells: a short text without function words ("Scheme of the NF-κB pathway" has two, "CT scan"
    none) is not called English, and what libraries say of two or three words is chance. From ten words on py3langid is
    right where stop words tie between Portuguese and French, or are missing (LOG.md).
    """
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return None
    for code, pattern in _SCRIPTS:
        if len(pattern.findall(text)) > _SCRIPT_SHARE * len(letters):
            return code
    words = _WORD.findall(text.lower())
    if len(words) >= _ENOUGH_WORDS:
        return str(_identifier()(text)[0])
    counts = dict.fromkeys(_LANGUAGE_WORDS, 0)
    for word in words:
        for code, common in _LANGUAGE_WORDS.items():
            counts[code] += word in common
    best = max(counts, key=lambda code: counts[code])  # English wins a tie
    if best != "en" and counts[best] < _FOREIGN_WORDS:
        best = "en"
    return best if counts[best] else None


def in_one_language(text: str) -> str:
    """The English of a caption that says everything twice, in English and in another language, where nothing marks
    which is which; any other text as it is.

    Sentences are judged alone, and then all of either side together: a foreign name or title is no second language.
    """
    if not _speaks_another(text, least=0) and not _is_script(text):
        return text
    pieces = _PIECE.split(text)
    judged = [_is_english(piece) for piece in pieces]
    english = next((each for each in judged if each is not None), True)
    sides: dict[bool, list[str]] = {True: [], False: []}
    for piece, each in zip(pieces, judged, strict=True):
        english = english if each is None else each
        sides[english].append(piece)
    ours, theirs = (" ".join(sides[side]).strip() for side in (True, False))
    if len(_WORD.findall(ours)) < _ENOUGH_WORDS // 2 or _is_script(ours) or language(ours) != "en":
        return text
    told = _is_script(theirs) or (_speaks_another(theirs) and len(_WORD.findall(theirs)) >= _ENOUGH_WORDS // 2)
    return text if not told or _ENGLISH_ALONE & set(_WORD.findall(theirs.lower())) else ours


def _is_english(piece: str) -> bool | None:
    """None where a sentence does not tell."""
    if _is_script(piece):
        return False
    words = _WORD.findall(piece)
    ours = sum(word.lower() in _LANGUAGE_WORDS["en"] for word in words)
    theirs = max(sum(word in common for word in words) for common in _OTHER_WORDS.values())
    if ours == theirs or (ours and len(words) >= _ENOUGH_WORDS):
        return language(piece) == "en" if len(words) >= _ENOUGH_WORDS else None
    return ours > theirs


def _speaks_another(text: str, least: float = 1) -> bool:
    """Whether two words, and one of eight, are function words of one language, and not of English: lists of species and
    abbreviations hold a few.
    """
    words = _WORD.findall(text)
    for common in _OTHER_WORDS.values():
        found = [word for word in words if word in common]
        if len(set(found)) > 1 and 8 * len(found) >= least * len(words):
            return True
    return False


def _is_script(text: str) -> bool:
    return not text.isascii() and any(pattern.search(text) for _, pattern in _SCRIPTS)


@lru_cache(maxsize=1)
def _identifier() -> Callable[[str], tuple[str, float]]:
    """py3langid among the languages that we know words of; its model takes half a second to load."""
    import py3langid

    py3langid.set_languages(list(_STOP_WORDS))
    classify: Callable[[str], tuple[str, float]] = py3langid.classify
    return classify


def _without_label(text: str, label: str | None) -> str:
    label = _SPACES.sub(" ", label or "").strip().rstrip(".:")
    if not label or not text.lower().startswith(label.lower()):
        return text
    rest = text[len(label) :]
    if rest[:1].isalnum() or re.match(r"[.,]\d|[-–—]\w", rest):
        return text  # "Figure 1" before "Figure 10 shows", "1" before "1,000 cells" and "1-year survival"
    if re.match(r"\s+[a-z]{2,}\s", rest):
        return text  # "Scheme of the pathway", "Figure 1 shows"
    if re.fullmatch(r"\d+|\w", label) and not re.match(r"\s*[.:;,|)–—-]\s|$", rest):
        return text  # "2" before "2 cells"
    return _LEAD_PUNCTUATION.sub("", rest) or text


def _repair_stretch(stretch: re.Match[str]) -> str:
    """One accident as a whole if it can be, else those of its runs that can be nothing else."""
    text = stretch[0]
    if text.isascii() or _ROOT.sub("", text).isascii():
        return text
    try:
        whole = text.encode("mac_roman").decode("utf-8")
    except UnicodeError:
        whole = _MAC_RUN.sub(_repair_run, text)
    return whole if all(_is_plausible(c) for c in set(whole) - set(text)) else text


def _repair_run(run: re.Match[str]) -> str:
    try:
        return run[0].encode("mac_roman").decode("utf-8")
    except UnicodeError:
        return run[0]


def _is_plausible(character: str) -> bool:
    point = ord(character)
    return point < 0x80 or any(low <= point <= high for low, high in _PLAUSIBLE)
