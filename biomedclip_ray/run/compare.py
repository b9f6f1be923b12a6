"""Two runs side by side, by their records alone: what each stage took, kept and reached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from biomedclip_ray.config import STAGES, ConfigError
from biomedclip_ray.run.runs import find, records
from biomedclip_ray.store.place import Place

Row = tuple[str, str, str, str, str]


def compare(root: str, first: str, second: str, console: Console) -> None:
    """Print the table. Raises ConfigError where the root has no such run, naming those it has."""
    one, other = (_found(root, name) for name in (first, second))
    table = Table(title=f"Runs in {Place(root).uri}; what a stage took is summed over all runs at its product")
    table.box = SIMPLE_HEAD
    for name in ("stage", "what"):
        table.add_column(name, no_wrap=True)
    for name in (first, second, "second / first"):
        table.add_column(name, justify="right")
    before = ""
    for stage, what, *figures in rows(one, other):
        table.add_row("" if stage == before else stage, what, *figures)
        before = stage
    console.print(table)


def rows(one: dict[str, Any], other: dict[str, Any]) -> Iterator[Row]:
    """(stage, what, first, second, ratio) of two records, stages in the order of the workflow; what neither has is left
    out.
    """
    yield ("run", "ended", one["state"], other["state"], "")
    yield ("run", "began", one["started"], other["started"], "")
    stages = [{stage["name"]: stage for stage in record["stages"]} for record in (one, other)]
    for name in STAGES:
        pair = [found.get(name) for found in stages]
        if not any(pair):
            continue
        yield (name, "state", _text(pair[0], "state"), _text(pair[1], "state"), "")
        products = [_text(stage, "product").rpartition("/")[2] for stage in pair]
        if set(products) != {"-"}:
            yield (name, "product", products[0], products[1], "the same" if products[0] == products[1] else "another")
        for what, digits in (("seconds", 1), ("node_seconds", 1), ("money", 2), ("peak_rss", 0)):
            yield from _figures(name, what.replace("_", "-"), [_amount(stage, what) for stage in pair], digits)
        units = dict.fromkeys(count["unit"] for stage in pair if stage for count in stage["counts"])
        for unit in units:
            for part in ("in", "kept"):
                yield from _figures(name, f"{unit} {part}", [_count(stage, unit, part) for stage in pair], 0)
        for way in dict.fromkeys(way for stage in pair if stage for way in stage.get("recall@10", {})):
            found = [stage["recall@10"].get(way) if stage and "recall@10" in stage else None for stage in pair]
            yield from _figures(name, f"recall@10 {way.replace('_', ' ')}", found, 4)


def _figures(stage: str, what: str, pair: list[float | None], digits: int) -> Iterator[Row]:
    if not any(pair):
        return
    first, second = pair
    ratio = f"{second / first:.3g}" if first and second is not None else ""
    shown = ["-" if value is None else f"{value:,.{digits}f}" for value in pair]
    yield (stage, what, shown[0], shown[1], ratio)


def _amount(stage: dict[str, Any] | None, what: str) -> float | None:
    found = (stage or {}).get(what)
    return sum(found.values()) if isinstance(found, dict) else found


def _count(stage: dict[str, Any] | None, unit: str, part: str) -> float | None:
    return next((count[part] for count in (stage or {}).get("counts", []) if count["unit"] == unit), None)


def _text(stage: dict[str, Any] | None, what: str) -> str:
    return str((stage or {}).get(what) or "-")


def _found(root: str, name: str) -> dict[str, Any]:
    record = find(root, name)
    if record is None:
        known = [record["id"] for record in records(Place(root))][-10:]
        raise ConfigError(f"--compare {name}: {root}/runs/ has no such run; its newest: {', '.join(known) or 'none'}")
    return record
