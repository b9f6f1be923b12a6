"""Which text of a pair a visit trains on: its caption, a sentence that cites the figure, or one panel's part of the
caption.

Drawn by the position in the sequence alone, as crops are: the same position has the same text for any number of
workers, before and after a kill, and the next epoch draws anew. A pair without the kind that was drawn has its caption.
Panels have their own text and nothing else: a sentence seldom says which panel it means.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from biomedclip_ray.figures.captions import training_text
from biomedclip_ray.figures.subcaptions import subcaptions
from biomedclip_ray.train.order import mix

COLUMNS = ("panel", "mentions")
"""What is read of a pair beside its text where texts vary."""

_KIND, _WHICH = 7, 8  # draws of a position; 3 to 6 are its crop's


def drawn_texts(rows: pa.Table, positions: npt.NDArray[np.int64], seed: int, weights: Mapping[str, float]) -> list[str]:
    """The text of each row at its position.

    Args:
        rows: text, panel and mentions of the pairs at `positions`.
        weights: caption, mentions, panels -> how often, against one another.
    """
    kinds = sorted(weights)
    ends = np.cumsum([weights[kind] for kind in kinds])
    draws = np.asarray(mix(seed, positions, _KIND) / 2.0**64 * ends[-1])
    chosen = np.minimum(np.searchsorted(ends, draws, side="right"), len(kinds) - 1)
    which = mix(seed, positions, _WHICH)
    texts = []
    for row, kind, number in zip(rows.to_pylist(), chosen.tolist(), which.tolist(), strict=True):
        others = _others(row, kinds[kind])
        texts.append(others[number % len(others)] if others else row["text"])
    return texts


def _others(row: dict[str, object], kind: str) -> list[str]:
    """The texts of a kind that a pair has beside its own."""
    if kind == "caption" or row["panel"]:
        return []
    if kind == "panels":
        return [text for text in subcaptions(str(row["text"])).values() if text]
    mentions = row["mentions"] if isinstance(row["mentions"], list) else []
    return [text for text in map(training_text, mentions) if text]
