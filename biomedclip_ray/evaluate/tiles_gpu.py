"""`tiles.count_tile` where torch computes: the same counts from a GPU, in strips of rows that its memory holds.

Scores are float32 products (TF32 is never used: its error is beyond the margin); those within rounding of a threshold
are computed again in float64 there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from biomedclip_ray.evaluate.tiles import TIE, Counted, Floats, Thresholds, float32_bounds, margin_of

_STRIP = 4096  # rows multiplied at once: 0.5 GB of scores at 32,768 columns
_PAIRS = 1 << 18  # float64 products of single pairs at once: 2 GB of width 512
_DENSE = 1 / 64  # share of near scores from which a strip is made whole in float64, _DENSE_ROWS at a time
_DENSE_ROWS = 256


def count_tile_on(
    device: str, text: Floats, image: Floats, sides: tuple[Thresholds, Thresholds]
) -> tuple[Counted, Counted]:
    """The counts of `count_tile`; `device`: torch's name of it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return _count(torch.device(device), text, image, sides)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@torch.inference_mode()
def _count(
    device: torch.device, text: Floats, image: Floats, sides: tuple[Thresholds, Thresholds]
) -> tuple[Counted, Counted]:
    texts, images = (torch.from_numpy(np.ascontiguousarray(side, np.float32)).to(device) for side in (text, image))
    asked = [_Side(side, margin_of(text, image), device) for side in sides]
    for start in range(0, len(texts), _STRIP):
        strip = texts[start : start + _STRIP]
        scores = strip @ images.T
        # the strip's own thresholds by rows; those of all columns by the strip turned
        own, entries = asked[0].of(start, start + len(strip))
        _add(asked[0], entries, scores[own], strip[own], images)
        every, entries = asked[1].of(0, len(images))
        _add(asked[1], entries, scores.T[every], images[every], strip)
    return asked[0].counted(), asked[1].counted()


class _Side:
    """The thresholds of one side on the device, and their counts so far."""

    def __init__(self, side: Thresholds, margin: float, device: torch.device) -> None:
        low, high = float32_bounds(side.score, margin)
        self.row, self.score = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (side.row, side.score))
        self.low, self.high = (torch.from_numpy(a).to(device) for a in (low, high))
        self.above, self.tied = (torch.zeros(len(side.row), dtype=torch.int64, device=device) for _ in range(2))

    def of(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Rows counted from start, and numbers, of the entries that ask for a row in start..stop."""
        entries = ((self.row >= start) & (self.row < stop)).nonzero().squeeze(1)
        return self.row[entries] - start, entries

    def counted(self) -> Counted:
        return Counted(self.above.cpu().numpy(), self.tied.cpu().numpy())


def _add(side: _Side, entries: Tensor, scores: Tensor, left: Tensor, right: Tensor) -> None:
    """Count the scores (entries, m) of some entries; left and right are the vectors that they are products of."""
    over = scores > side.high[entries, None]
    near = (scores >= side.low[entries, None]) & ~over
    side.above[entries] += over.sum(dim=1)
    found = int(near.sum())
    if found > _DENSE * near.numel():
        side.above[entries] -= over.sum(dim=1)
        wide = right.double().T
        for start in range(0, len(entries), _DENSE_ROWS):
            part = slice(start, start + _DENSE_ROWS)
            gap = left[part].double() @ wide - side.score[entries[part], None]
            side.above[entries[part]] += (gap > TIE).sum(dim=1)
            side.tied[entries[part]] += (gap.abs() <= TIE).sum(dim=1)
        return
    places = near.nonzero()
    for start in range(0, found, _PAIRS):
        rows, columns = places[start : start + _PAIRS].T
        gap = (left[rows].double() * right[columns].double()).sum(dim=1) - side.score[entries[rows]]
        side.above.index_add_(0, entries[rows], (gap > TIE).long())
        side.tied.index_add_(0, entries[rows], (gap.abs() <= TIE).long())
