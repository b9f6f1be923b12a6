"""What an evaluation found, as tables for a terminal: each figure with its interval, beside chance and the control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

DIRECTIONS = ("text_to_image", "image_to_text")
LOWER_IS_BETTER = ("brier", "ece")
_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "weighted_f1",
    "auroc",
    "auroc_pooled",
    "auprc",
    "top_5",
    "brier",
    "ece",
)


def tables(evaluation: dict[str, Any]) -> list[Table]:
    """Retrieval over the whole pool, recall@10 within each kind of figure, and labelled sets, from the content of
    evaluation.json.
    """
    out = [_retrieval(evaluation), _by_kind(evaluation["by_kind"])]
    if evaluation.get("sets"):
        out.append(set_table(evaluation["sets"]))
    if evaluation.get("comparison"):
        out.append(comparison_table(evaluation["comparison"]))
    return out


def set_table(sets: Mapping[str, Any], title: str = "Labelled sets, with 95% intervals") -> Table:
    """Every figure of every task of every set, a line each."""
    table = Table("set", "task", "n (left out)", "metric", title=title, box=SIMPLE_HEAD)
    for name in ("value", "interval", "chance", "shuffled control"):
        table.add_column(name, justify="right")
    for line in set_lines(sets):
        figure, control = line["figure"], line["control"]
        if figure is None:
            table.add_row(line["set"], line["task"], "", line["metric"], "", "", "", "")
            continue
        table.add_row(
            line["set"],
            line["task"],
            f"{line['n']}" + (f" ({line['left_out']})" if line["left_out"] else ""),
            line["metric"].replace("_", " "),
            _share(figure["value"]),
            f"{_share(figure['low'])} - {_share(figure['high'])}",
            _share(figure["chance"]) if figure.get("chance") is not None else "",
            _share(control["value"]) if control else "",
        )
    return table


def set_lines(sets: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The same as lines: set, task, n, left_out, metric, figure, control; a task that was not measured has a sentence
    for its metric and no figure.
    """
    for name, found in sets.items():
        left_out = found["left_out"]["n"]
        for task, measured in found.items():
            if not _is_task(measured):
                continue
            base = {"set": name, "task": task.replace("_", " "), "left_out": left_out, "control": None}
            if "left_out" in measured:
                yield base | {"metric": f"not measured: {measured['left_out']}", "figure": None, "n": 0}
                continue
            if DIRECTIONS[0] in measured:
                for way in DIRECTIONS:
                    for metric, figure in measured[way].items():
                        if metric.startswith("recall") or metric == "mrr":
                            label = f"{way} {metric}"
                            yield base | {"metric": label, "figure": figure, "n": measured["n"]}
                continue
            for metric in _METRICS:
                if metric in measured:
                    control = measured.get("control_shuffled", {}).get(metric)
                    yield base | {"metric": metric, "figure": measured[metric], "n": measured["n"], "control": control}
        asked = {task: found.get(task, {}) for task in ("vqa", "vqa_fusion")}
        for task, split, measured in ((task, *one) for task, splits in asked.items() for one in splits.items()):
            base = {"set": name, "task": f"{task.replace('_', ' ')}, {split}", "left_out": left_out, "control": None}
            if "left_out" in measured:
                yield base | {"metric": f"not measured: {measured['left_out']}", "figure": None, "n": 0}
                continue
            for part in ("all", "closed", "open"):
                for system, own in measured.get(part, {}).items():
                    if isinstance(own, dict) and "exact" in own:
                        metric = f"{part}, {system}: exact match"
                        yield base | {"metric": metric, "figure": own["exact"], "n": own["n"]}


def bundles_table(lines: list[dict[str, Any]], bundles: list[str]) -> Table:
    """The main metric of each task of each set, a column a bundle: the lines of `compare.table`."""
    table = Table("set", "task", "metric", title="Without training, with 95% intervals", box=SIMPLE_HEAD)
    for name in bundles:
        table.add_column(name, justify="right")
    for line in lines:
        cells = []
        for name in bundles:
            figure = line["bundles"].get(name, {})
            shown = _share(figure["value"]) if figure else ""
            cells.append(f"{shown} ({_share(figure['low'])} - {_share(figure['high'])})" if "low" in figure else shown)
        table.add_row(line["set"], line["task"].replace("_", " "), line["metric"], *cells)
    return table


def _is_task(entry: Any) -> bool:
    """Whether a set's entry is that of a task, measured or left out with a sentence; vqa has one a split."""
    if not isinstance(entry, dict):
        return False
    return isinstance(entry.get("left_out"), str) or not entry.keys().isdisjoint((*_METRICS, *DIRECTIONS))


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
            shown = _rank if metric.endswith("rank") else _share
            times = "" if metric.endswith("rank") else f"{measured['value'] / measured['chance']:.1f}"
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
    return f"{value:.4g}"
