"""A compound figure's caption -> one text for each panel label. Pure, by rules.

`caption_labels` finds the places that name panels; here each stretch of text between two of them goes to one side or
the other, to several panels where a sentence or a list is about several, or to all.
"""

from __future__ import annotations

import bisect
import itertools
import re

from biomedclip_ray.figures.caption_labels import label_mentions, sentence_starts
from biomedclip_ray.figures.label_forms import LabelMention

_CLOSING = re.compile(
    r"scale|bars?\b|error bars?|data (?:are|were|represent)|values|results are|(?:original "
    r")?magnification|abbreviations?|all |\*?\s?\d+[x×*]|"
    r"asterisks?|\W*p\W|statistic|\(?\*|n ?=|ns\b|[A-Za-z0-9-]{1,8}(?:,| ?[=:]) [^.;]{3,60}(?:;|\.?$)",
    re.IGNORECASE,
)

_JOINT = re.compile(r"[,;](?=\s)|\s(?=(?:and|while|whereas|but)\s)")
_SENTENCE_END = re.compile(r"(?<=[.;])\s+(?=[A-Z(])")
_REMARK = re.compile(r"\s*\([^()]*\)")
# What joined a text to the one before or after it.
_LOOSE = re.compile(r"^\W*(?:and|or)\s|[\s,;]+(?:and|or)\s*$")
_COLON = re.compile(r":\s")
_WIDE = str.maketrans("（）［］：；，", "()[]:;,")


def subcaptions(caption: str) -> dict[str, str]:
    """The text of each labelled panel, the text common to all included; {} where the caption names no two panels.

    Args:
        caption: one line of plain text.

    Returns:
        label -> text in the labels' order, the letters as the caption writes them ("A", "b").
    """
    caption = caption.translate(_WIDE)
    mentions = label_mentions(caption)
    if not mentions:
        return {}
    labels = sorted({label for mention in mentions for label in mention.labels})
    before, own, after = _Sharing(caption, mentions, labels).share()
    return {label: _tidy(" ".join((before, *own[label], after))) for label in labels}


class _Sharing:
    """Gives each stretch of a caption to the labels it is about."""

    def __init__(self, caption: str, mentions: list[LabelMention], labels: list[str]):
        self._caption = caption
        self._mentions = mentions
        self._starts = sentence_starts(caption, mentions)
        self._sentences: dict[int, list[LabelMention]] = {}
        for mention in mentions:
            self._sentences.setdefault(bisect.bisect_right(self._starts, mention.start), []).append(mention)
        self._own: dict[str, list[str]] = {label: [] for label in labels}

    def share(self) -> tuple[str, dict[str, list[str]], str]:
        """(text before all, each label's own texts, text after all)."""
        first, last = self._mentions[0], self._mentions[-1]
        before, head = self._split_head(0, first.start)
        if first.follows:
            self._give_head(first, head)
        else:
            before += head
        for left, right in itertools.pairwise(self._mentions):
            self._between(left, right)
        tail, rest = self._split_tail(last.end, len(self._caption))
        self._give(self._run(last) if last.follows else last.labels, tail)
        if not last.follows:
            usual = max(1, *(len(_SENTENCE_END.split(" ".join(texts).strip())) for texts in self._own.values()))
            stays, rest = self._without_closing(last.end + len(tail), usual)
            self._give(self._around(last), stays)
        return before, self._own, rest

    def _between(self, left: LabelMention, right: LabelMention) -> None:
        inner = set(right.labels) < set(left.labels) and not left.follows
        if not self._cuts(left.end, right.start):
            text = self._caption[left.end : right.start]
            if inner:
                self._give(right.labels if right.follows else left.labels, text)
            elif right.follows:
                if left.follows and (remark := _REMARK.match(text)):
                    self._give(left.labels, remark[0])
                    text = text[remark.end() :]
                joint = 0 if left.follows else _last_end(_JOINT, text)
                self._give(left.labels, text[:joint])
                self._give(right.labels, text[joint:])
            else:
                self._give(self._run(left) if left.follows else left.labels, text)
            return
        tail, _ = self._split_tail(left.end, right.start)
        middle, head = self._split_head(left.end + len(tail), right.start)
        self._give(self._run(left) if left.follows else left.labels, tail)
        self._give(self._around(left), middle)
        self._give_head(right, head)

    def _give_head(self, mention: LabelMention, head: str) -> None:
        """The beginning of a mention's sentence, up to a colon about all that the sentence names: "Sections: liver (A),
        kidney (B)".
        """
        run = self._run(mention)
        colon = _last_end(_COLON, head) if mention.follows and len(run) > len(mention.labels) else 0
        self._give(run, head[:colon] if mention.follows else head)
        if mention.follows:
            self._give(mention.labels, head[colon:])

    def _cuts(self, start: int, end: int) -> list[int]:
        """Where sentences begin in the stretch."""
        return self._starts[bisect.bisect_right(self._starts, start) : bisect.bisect_right(self._starts, end)]

    def _split_tail(self, start: int, end: int) -> tuple[str, str]:
        """(the rest of the sentence, the sentences after it)."""
        at = next(iter(self._cuts(start, end)), end)
        return self._caption[start:at], self._caption[at:end]

    def _split_head(self, start: int, end: int) -> tuple[str, str]:
        """(whole sentences, the beginning of one that goes on)."""
        cuts = self._cuts(start - 1, end)
        at = cuts[-1] if cuts else start
        return self._caption[start:at], self._caption[at:end]

    def _run(self, mention: LabelMention) -> tuple[str, ...]:
        """The labels of all mentions in this one's sentence that look the same way: what frames them is about all of
        them.
        """
        same = [each for each in self._beside(mention) if each.follows == mention.follows]
        return tuple(dict.fromkeys(label for each in same for label in each.labels))

    def _around(self, mention: LabelMention) -> tuple[str, ...]:
        """Whom the sentences after a mention's are about: the list that its sentence goes through, else itself."""
        lists = (each.labels for each in self._beside(mention) if not each.follows)
        return next((labels for labels in lists if set(mention.labels) < set(labels)), mention.labels)

    def _beside(self, mention: LabelMention) -> list[LabelMention]:
        """The mentions of one sentence."""
        return self._sentences[bisect.bisect_right(self._starts, mention.start)]

    def _give(self, labels: tuple[str, ...], text: str) -> None:
        text = _LOOSE.sub("", text)
        if text.strip():
            for label in dict.fromkeys(labels):
                self._own[label].append(text)

    def _without_closing(self, start: int, usual: int) -> tuple[str, str]:
        """The last label's further sentences, and what closes the caption and is about all: scale bars, statistics,
        abbreviations.

        Args:
            usual: sentences of the longest label; the last is likely to have no more of its own than that.
        """
        cuts = [start, *self._cuts(start, len(self._caption)), len(self._caption)]
        for k, (begin, end) in enumerate(itertools.pairwise(cuts), start=1):
            if k >= usual or _CLOSING.match(self._caption[begin:end]):
                return self._caption[start:begin], self._caption[begin:]
        return self._caption[start:], ""


def _last_end(pattern: re.Pattern[str], text: str) -> int:
    """Where the last match outside brackets ends; 0 where there is none."""
    flat = re.sub(r"\([^()]*\)", lambda brackets: "x" * len(brackets[0]), text)
    return max((match.end() for match in pattern.finditer(flat)), default=0)


def _tidy(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\s+([.,;:)])", r"\1", text)
    text = re.sub(r"\(\s+", "(", text)
    text = re.sub(r"([.;,:])(?:\s*[.;,:])+", r"\1", text).strip(" ;,:")
    return text + ")" * (text.count("(") - text.count(")"))  # an item of "(A: liver, B: kidney)"
