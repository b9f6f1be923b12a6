"""What an evaluation found, as tables for a terminal: each figure with its interval, beside chance and the control."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

DIRECTIONS = ("text_to_image", "image_to_text")


def tables(evaluation: dict[str, Any]) -> list[Table]:
    """Retrieval over the whole pool, and recall@10 within each kind of figure, from the content of evaluation.json."""
    return [_retrieval(evaluation), _by_kind(evaluation["by_kind"])]


def _retrieval(evaluation: dict[str, Any]) -> Table:
    found = evaluation["retrieval"]
    title = f"Retrieval among {found['n']} figures of the {evaluation['split']} split, with 95% intervals"
    table = Table("", title=title, box=SIMPLE_HEAD)
    for name in ("value", "interval", "chance", "x chance", "shuffled control"):
        table.add_column(name, justify="right")
    for direction in DIRECTIONS:
        for metric, measured in found[direction].items():
            control = found["control_shuffled"][direction][metric]["value"]
            shown = _share if metric.startswith("recall") else _rank
            times = f"{measured['value'] / measured['chance']:.1f}" if metric.startswith("recall") else ""
            table.add_row(
                f"{direction.replace('_', ' ')} {metric.replace('_', ' ')}",
                shown(measured["value"]),
                f"{shown(measured['low'])} - {shown(measured['high'])}",
                shown(measured["chance"]),
                times,
                shown(control),
            )
    return table


def _by_kind(kinds: dict[str, Any]) -> Table:
    table = Table("kind", title="Recall@10 within each kind of figure", box=SIMPLE_HEAD)
    for name in ("figures", *(direction.replace("_", " ") for direction in DIRECTIONS), "chance"):
        table.add_column(name, justify="right")
    for kind, found in kinds.items():
        recalls = [found[direction]["recall@10"] for direction in DIRECTIONS]
        shares = [_share(recall["value"]) for recall in recalls]
        table.add_row(kind, str(found["n"]), *shares, _share(recalls[0]["chance"]))
    return table


def _share(value: float) -> str:
    return f"{value:.1%}"


def _rank(value: float) -> str:
    return f"{value:g}"
