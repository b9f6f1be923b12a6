"""What a stage did not keep, row by row, and the balance of its units: `in = kept + sum of what was dropped`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from biomedclip_ray.schema import LEDGER, Reason


@dataclass
class Count:
    """The balance of one unit: `came_in = kept + sum(dropped.values())`."""

    unit: str
    came_in: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def check(self, stage: str) -> None:
        """Raises RuntimeError where units vanished or appeared: a bug in the stage, never in the data."""
        if self.came_in != self.kept + sum(self.dropped.values()):
            raise RuntimeError(
                f"{stage}: {self.unit}: in={self.came_in} but kept={self.kept} and dropped={self.dropped}"
            )

    def as_json(self) -> dict[str, Any]:
        return {"unit": self.unit, "in": self.came_in, "kept": self.kept, "dropped": dict(sorted(self.dropped.items()))}


class Ledger:
    """Collects what one part drops, and counts its units."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.rows: list[dict[str, Any]] = []
        self.counts: dict[str, tuple[int, int]] = {}

    def drop(self, unit: str, id: str, reason: Reason, detail: str = "") -> None:
        self.rows.append(
            {
                "stage": self.stage,
                "unit": unit,
                "id": id,
                "reason": reason.value,
                "transient": reason.transient,
                "detail": detail[:500],
            }
        )

    def count(self, unit: str, came_in: int, kept: int) -> None:
        """Add to the balance of a unit; called with numbers counted apart from the dropped rows."""
        before = self.counts.get(unit, (0, 0))
        self.counts[unit] = (before[0] + came_in, before[1] + kept)

    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows, schema=LEDGER)


@dataclass(frozen=True)
class PartResult:
    """What a worker made of one part."""

    data: pa.Table
    ledger: Ledger
    reused: int = 0
    """Rows taken over from the parent product."""
    withdrawn: tuple[str, ...] = ()
    """Ids that the parent has and this product has not."""
