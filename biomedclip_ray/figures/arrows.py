"""Arrows that lead from panel to panel: what looks like panels are steps of one drawing. Pure, no model.

An arrow is told from axes, lines and braces by its head: followed along its bends from the tip on, it is pointed, soon
broad, then thin and even to its tail. It takes at least half of the way between the contents of two panels, which lie
behind its tail and before its tip. `cuts.hang_together` knows thin straight strokes, with a head or without.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from biomedclip_ray.figures.cuts import Ink, Region

Point = NDArray[np.float64]
Boxes = NDArray[np.int64]
"""(n, 4): left, top, right and bottom."""

# Working pixels: diagonal of an arrow, and from its ends to what it joins.
_LEAST, _MOST, _REACH = 30, 600, 60
_SIDE = 72
"""Pixels of the side that a shape is looked at."""
# Breadth of a head, and of the broadest place of a shaft, in the shaft's.
_HEAD, _EVEN = 1.7, 1.5
# Lengths of an arrow by which content may reach beside it.
_BESIDE = 0.5
_SQUARE, _CROSS = (np.ones((3, 3), np.uint8), np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8))


def joined_by_arrows(ink: Ink, boxes: list[Region]) -> bool:
    """Whether arrows lead from box to box until all are reached."""
    outlines, _ = cv2.findContours(ink, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlines = [outline for outline in outlines if len(outline) > 4]
    if len(boxes) < 2 or not outlines:
        return False
    frames = np.array([cv2.boundingRect(outline) for outline in outlines], np.int64)
    diagonal = np.hypot(frames[:, 2], frames[:, 3])
    frames[:, 2:] += frames[:, :2]
    apart = np.stack([_apart(frames, (box.x0, box.y0, box.x1, box.y1)) for box in boxes], axis=1)
    near = (apart < np.minimum(_REACH, diagonal)[:, None]) & ((diagonal >= _LEAST) & (diagonal <= _MOST))[:, None]
    near &= (near.sum(axis=1) > 1)[:, None]
    # looking at shapes is dear: most figures end at the first box, for no arrow leads to it
    if not _all_reached([np.flatnonzero(row).tolist() for row in near[near.any(axis=1)]], len(boxes)):
        return False
    looked: dict[int, tuple[Point, Point] | None] = {}
    for box in np.argsort(near.sum(axis=0)).tolist():
        some = np.flatnonzero(near[:, box]).tolist()
        looked |= {k: _ends(outlines[k]) for k in some if k not in looked}
        if not any(looked[k] for k in some):
            return False
    arrows = {k: ends for k, ends in looked.items() if ends is not None}
    inside = (apart == 0) & ((apart == 0).sum(axis=1) == 1)[:, None]
    inside[list(arrows)] = False
    there = [frames[inside[:, k]] for k in range(len(boxes))]
    if not all(map(len, there)):
        return False
    joined = []
    for tail, tip in arrows.values():
        away = [[float(_apart(content, (*point, *point)).min()) for content in there] for point in (tail, tip)]
        first, second = (int(np.argmin(row)) for row in away)
        ways = away[0][first], away[1][second]
        if first != second and max(ways) < _REACH and sum(ways) <= np.hypot(*(tip - tail)):
            joined += [[first, second]] if _leads(tail, tip, there[first], there[second]) else []
    return _all_reached(joined, len(boxes))


def _all_reached(joined: list[list[int]], count: int) -> bool:
    """Whether all boxes hang together, where each list's do."""
    group = np.arange(count)
    for some in joined:
        group[np.isin(group, group[some])] = group[some[0]]
    return bool((group == group[0]).all())


def _apart(frames: Boxes, other: tuple[float, ...]) -> NDArray[np.float64]:
    """(n,): pixels between rectangles and another; 0 where they touch."""
    dx = np.maximum(np.maximum(frames[:, 0] - other[2], other[0] - frames[:, 2]), 0)
    dy = np.maximum(np.maximum(frames[:, 1] - other[3], other[1] - frames[:, 3]), 0)
    return np.asarray(np.hypot(dx, dy), np.float64)


def _leads(tail: Point, tip: Point, before: Boxes, after: Boxes) -> bool:
    """Whether content lies behind the tail and before the tip, and not beside the arrow."""
    length = float(np.hypot(*(tip - tail)))
    along = (tip - tail) / length
    behind, ahead = (np.concatenate([c[:, [x, y]] for x in (0, 2) for y in (1, 3)]) @ along for c in (before, after))
    slack = _BESIDE * length
    return bool(behind.max() <= tail @ along + slack and ahead.min() >= tip @ along - slack)


def _ends(outline: NDArray[np.int32]) -> tuple[Point, Point] | None:
    """(tail, tip) of an arrow; None for another shape."""
    x, y, w, h = cv2.boundingRect(outline)
    if cv2.contourArea(outline) > 0.75 * w * h and min(w, h) > 0.25 * max(w, h):
        return None  # a box
    scale = min(1.0, _SIDE / max(w, h))
    mask = np.zeros((int(h * scale) + 3, int(w * scale) + 3), np.uint8)
    cv2.drawContours(mask, [np.rint((outline - (x, y)) * scale).astype(np.int32) + 1], -1, 1, -1)
    tip = _furthest(_steps(mask, np.argwhere(mask)[0]))
    for _ in range(2):
        steps = _steps(mask, tip)
        tail = _furthest(steps)
        breadth = np.bincount(steps[steps >= 0]).astype(np.float64)
        if _has_head((breadth[1:] + breadth[:-1]) / 2):
            return (tail[::-1] - 1) / scale + (x, y), (tip[::-1] - 1) / scale + (x, y)
        tip = tail
    return None


def _furthest(steps: NDArray[np.int16]) -> NDArray[np.int64]:
    return np.asarray(np.argwhere(steps == steps.max())[0])


def _has_head(breadth: NDArray[np.float64]) -> bool:
    """Whether breadths from the tip on are those of a head and an even shaft behind it."""
    n = len(breadth)
    if n < 12:
        return False
    shaft = breadth[n - n // 2 : n - n // 12]
    usual = float(np.median(shaft))
    if usual > 0.5 * n or shaft.max() > _EVEN * usual + 1:
        return False
    head = int(breadth[: n - n // 3].argmax())
    rest = breadth[head + int(0.35 * n) : n - n // 12]
    most = float(breadth[head])
    return head > 1 and most >= _HEAD * usual + 1 and breadth[0] <= most / 2 and rest.max(initial=0) < 0.75 * most


def _steps(mask: Ink, start: NDArray[np.int64]) -> NDArray[np.int16]:
    """How many steps each pixel of a shape lies from one of them, along the shape; -1 outside."""
    reached = np.zeros_like(mask)
    reached[tuple(start)] = 1
    rounds = np.zeros(mask.shape, np.int16)
    number, before = 0, 0
    while True:
        rounds += reached
        kernel = _SQUARE if number % 2 else _CROSS  # in turns, to go round in an octagon
        reached = np.asarray(cv2.bitwise_and(cv2.dilate(reached, kernel), mask), np.uint8)
        here = cv2.countNonZero(reached)
        if number % 2 and here == before:
            return np.where(reached > 0, number - rounds + 1, -1).astype(np.int16)
        number, before = number + 1, here
