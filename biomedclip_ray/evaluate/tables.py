"""What an evaluation found, as tables for a terminal: each figure with its interval, beside chance and the control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from biomedclip_ray.evaluate.compare import warnings_of
from biomedclip_ray.evaluate.ranks import DIRECTIONS
from biomedclip_ray.evaluate.set_tables import as_rank, as_share, ends, set_tables

READINGS = {"same_image": "same image", "same_text": "same text"}
"""What else counts as right."""
SLICED = {
    "figure_kind": "kind",
    "license": "licence",
    "year": "year",
    "caption_words": "words of the caption",
    "image": "whole or panel",
}


def tables(evaluation: dict[str, Any]) -> list[Table]:
    """Retrieval over the whole pool, its slices, recall@10 within each kind of figure, and labelled sets, from the
    content of evaluation.json.
    """
    out = [_retrieval(evaluation), _slices(evaluation["slices"]), _by_kind(evaluation["by_kind"])]
    if evaluation.get("sets"):
        out += set_tables(evaluation["sets"])
    if evaluation.get("comparison"):
        out.append(comparison_table(evaluation["comparison"]))
    return out


def bundles_table(lines: list[dict[str, Any]], bundles: list[str], title: str) -> Table:
    """The main metric of each task of each set, a column a bundle: the lines of `compare.table`; below stand the sets'
    warnings.
    """
    notes = "\n".join(warnings_of(lines)) or None
    table = Table("set", "task", "metric", title=title, caption=notes, caption_justify="left", box=SIMPLE_HEAD)
    for name in bundles:
        table.add_column(name, justify="right")
    for line in lines:
        cells = []
        for name in bundles:
            figure = line["bundles"].get(name, {})
            shown = as_share(figure["value"]) if figure else ""
            shown += f" ({ends(figure)})" if "low" in figure else ""
            cells.append(shown + (f", {figure['left_out']} left out" if figure.get("left_out") else ""))
        table.add_row(line["set"], line["task"].replace("_", " "), line["metric"], *cells)
    return table


def index_table(found: Mapping[str, Any]) -> Table:
    """Recall through an index beside that of an exact search, and the index's own: what `search/retrieval.py` found."""
    title = f"{found['queries']:,} pairs of the {found['split']} split among {found['rows']:,} rows ({found['kind']})"
    table = Table("", title=f"{title}, with 95% intervals", box=SIMPLE_HEAD)
    for name in ("through the index", "interval", "exact", "interval", "chance"):
        table.add_column(name, justify="right")
    for direction in DIRECTIONS:
        both = found[direction]
        words = direction.replace("_", " ")
        for metric, figure in both["approximate"].items():
            exact = both["exact"][metric]
            cells = [cell for one in (figure, exact) for cell in (as_share(one["value"]), ends(one))]
            table.add_row(f"{words} {metric}", *cells, f"{figure['chance']:.2%}")
        own = both["index"]
        table.add_row(f"{words}: of the ten nearest the index finds", as_share(own["value"]), ends(own), "", "", "")
    return table


def comparison_table(pairs: list[dict[str, Any]]) -> Table:
    """Paired differences of the main metric, first less second, with Holm's p over the sets."""
    table = Table("first", "second", "set", "metric", title="Bundles compared, row by row", box=SIMPLE_HEAD)
    for name in ("n", "difference", "interval", "p (Holm)", "both", "only first", "only second", "neither"):
        table.add_column(name, justify="right")
    for pair in pairs:
        for entry in pair["sets"]:
            figure = entry["metrics"].get(entry["main"])
            if figure is None:
                continue
            answered = [f"{entry['answered'][key]:g}" for key in ("both", "only_first", "only_second", "neither")]
            table.add_row(
                pair["first"],
                pair["second"],
                f"{entry['set']} {entry['task']}",
                entry["main"],
                str(entry["n"]),
                f"{figure['value']:+.1%}",
                f"{figure['low']:+.1%} - {figure['high']:+.1%}",
                f"{figure.get('holm', 1.0):.3g}",
                *answered,
            )
    return table


def _retrieval(evaluation: dict[str, Any]) -> Table:
    found = evaluation["retrieval"]
    left = evaluation.get("left_out", {}).get("n", 0)
    title = f"Retrieval among {found['n']} figures of the {evaluation['split']} split, with 95% intervals"
    title += f" ({left} left out: no finite vector)" if left else ""
    table = Table("", title=title, box=SIMPLE_HEAD)
    for name in ("value", "interval", "chance", "x chance", "shuffled control"):
        table.add_column(name, justify="right")
    for direction in DIRECTIONS:
        for metric, measured in found[direction].items():
            control = found["control_shuffled"][direction][metric]["value"]
            shown = as_rank if metric.endswith("rank") else as_share
            times = "" if metric.endswith("rank") else f"{measured['value'] / measured['chance']:.1f}"
            table.add_row(
                f"{direction.replace('_', ' ')} {metric.replace('_', ' ')}",
                shown(measured["value"]),
                f"{shown(measured['low'])} - {shown(measured['high'])}",
                shown(measured["chance"]),
                times,
                shown(control),
            )
        for reading, words in READINGS.items():
            measured = found[reading][direction]["recall@10"]
            table.add_row(
                f"{direction.replace('_', ' ')} recall@10, {words}",
                as_share(measured["value"]),
                ends(measured),
                as_share(measured["chance"]),
                f"{measured['value'] / measured['chance']:.1f}",
                "",
            )
    return table


def slice_lines(slices: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Recall@10 of each slice of the queries as lines: by, value, n, of (candidates), and a figure for each
    direction.
    """
    for column, found in slices.items():
        for value, entry in found.items():
            figures = {direction: entry[direction]["recall@10"] for direction in DIRECTIONS}
            yield {"by": SLICED[column], "value": value, "n": entry["n"], "of": entry["of"], **figures}


def _slices(slices: Mapping[str, Any]) -> Table:
    table = Table("queries by", "", title="Recall@10 of each slice among all candidates", box=SIMPLE_HEAD)
    for name in ("queries", "candidates"):
        table.add_column(name, justify="right")
    for direction in DIRECTIONS:
        table.add_column(direction.replace("_", " "), justify="right")
        table.add_column("interval", justify="right")
    for line in slice_lines(slices):
        cells = []
        for direction in DIRECTIONS:
            figure = line[direction]
            cells += [as_share(figure["value"]), ends(figure)]
        table.add_row(line["by"], line["value"], str(line["n"]), str(line["of"]), *cells)
    return table


def _by_kind(kinds: dict[str, Any]) -> Table:
    """Ten figures or fewer are all among the first ten, which says nothing."""
    table = Table("kind", title="Recall@10 within each kind of figure", box=SIMPLE_HEAD)
    for name in ("figures", *(direction.replace("_", " ") for direction in DIRECTIONS), "chance"):
        table.add_column(name, justify="right")
    for kind, found in kinds.items():
        recalls = [found[direction]["recall@10"] for direction in DIRECTIONS]
        shares = [as_share(recall["value"]) if found["n"] > 10 else "-" for recall in recalls]
        table.add_row(kind, str(found["n"]), *shares, as_share(recalls[0]["chance"]))
    return table
