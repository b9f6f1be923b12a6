"""What was found on labelled sets, as lines (for the report) and as tables for a terminal: every figure of every task
with its interval, and each class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from biomedclip_ray.evaluate.ranks import DIRECTIONS

PER_CLASS = ("recall", "precision", "f1", "auroc", "auprc")
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
_NAMES = {
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "auroc": "AUROC",
    "auroc_pooled": "AUROC, pooled",
    "auprc": "AUPRC",
    "top_5": "top 5",
    "brier": "Brier score",
    "ece": "ECE",
}
_WORTH = {"exact": "exact match", "token_f1": "token F1", "bleu_1": "BLEU-1"}


def set_tables(sets: Mapping[str, Any], title: str = "Labelled sets, with 95% intervals") -> list[Table]:
    """All that a terminal can show of what was found: figures, classes, confusion, few labels, worse images."""
    return [_figures(sets, title), *_classes(sets), *_confusions(sets), *_few_labels(sets), *_robustness(sets)]


def _figures(sets: Mapping[str, Any], title: str) -> Table:
    """Every figure of every task of every set, a line each."""
    table = Table("set", "task", "n (left out)", "metric", title=title, box=SIMPLE_HEAD)
    for name in ("value", "interval", "chance", "shuffled control"):
        table.add_column(name, justify="right")
    for line in set_lines(sets):
        figure, control = line["figure"], line["control"]
        if figure is None:
            table.add_row(line["set"], line["task"], "", line["metric"], "", "", "", "")
            continue
        shown = as_rank if line["rank"] else as_share
        table.add_row(
            line["set"],
            line["task"],
            f"{line['n']}" + (f" ({line['left_out']})" if line["left_out"] else ""),
            line["metric"].replace("_", " "),
            shown(figure["value"]),
            f"{shown(figure['low'])} - {shown(figure['high'])}",
            shown(figure["chance"]) if figure.get("chance") is not None else "",
            shown(control["value"]) if control else "",
        )
    return table


def _classes(sets: Mapping[str, Any]) -> list[Table]:
    """Each class of each task of each set; no table where no set has classes."""
    lines = [(name, task, *line) for name, found in sets.items() for task, line in class_lines(found)]
    if not lines:
        return []
    table = Table("set", "task", "class", title="By class", box=SIMPLE_HEAD)
    for name in ("n", *(metric.upper() if metric[0] == "a" else metric for metric in PER_CLASS)):
        table.add_column(name, justify="right")
    for name, task, label, measured in lines:
        cells = ["" if measured.get(metric) is None else as_share(measured[metric]) for metric in PER_CLASS]
        table.add_row(name, task.replace("_", " "), label, str(measured["n"]), *cells)
    return [table]


def _confusions(sets: Mapping[str, Any]) -> Iterator[Table]:
    for name, found in sets.items():
        for task, measured in found.items():
            if isinstance(measured, dict) and "confusion" in measured:
                title = f"{name}, {task.replace('_', ' ')}: truth in rows, answers in columns"
                table = Table("", title=title, box=SIMPLE_HEAD)
                for label in measured["classes"]:
                    table.add_column(label, justify="right")
                for label, row in zip(measured["classes"], measured["confusion"], strict=True):
                    table.add_row(label, *(f"{cell:g}" for cell in row))
                yield table


def _few_labels(sets: Mapping[str, Any]) -> Iterator[Table]:
    for name, found in sets.items():
        few = found.get("few_labels")
        if not few:
            continue
        title = f"{name}, linear probe with few labels: mean (standard deviation) of {few['seeds']} draws"
        table = Table("labels", title=title, box=SIMPLE_HEAD)
        for words in ("n", "accuracy", "balanced accuracy"):
            table.add_column(words, justify="right")
        for kind, shown in (("shots", "{:g} of each class"), ("share", "{:.0%} of train")):
            for point in few[kind]:
                at = shown.format(point["at"])
                if "left_out" in point:
                    table.add_row(at, "", f"not measured: {point['left_out']}", "")
                    continue
                spreads = (point[metric] for metric in ("accuracy", "balanced_accuracy"))
                table.add_row(at, str(point["n"]), *(f"{as_share(s['mean'])} ({100 * s['sd']:.1f})" for s in spreads))
        yield table


def _robustness(sets: Mapping[str, Any]) -> Iterator[Table]:
    for name, found in sets.items():
        worse = found.get("robustness")
        if not worse:
            continue
        title = f"{name}, zero shot on {worse['n']} images made worse; clean {as_share(worse['clean'])}"
        table = Table("by", title=title, box=SIMPLE_HEAD)
        for strength in range(1, 1 + len(next(iter(worse["kinds"].values()))["accuracy"])):
            table.add_column(f"strength {strength}", justify="right")
        for kind, measured in worse["kinds"].items():
            both = zip(measured["accuracy"], measured["relative_drop"], strict=True)
            table.add_row(kind, *(as_share(one) + ("" if lost is None else f" ({-lost:+.0%})") for one, lost in both))
        lost = worse["mean_relative_drop"]
        if lost is not None:
            table.caption = f"In brackets the change of what is above chance; {as_share(lost)} is lost on average."
        yield table


def class_lines(found: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """(task, (class, its figures)) of one set."""
    for task, measured in found.items():
        if isinstance(measured, dict):
            for line in measured.get("per_class", {}).items():
                yield task, line


def set_lines(sets: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The figures as lines: set, task, n, left_out, metric, figure, control, rank (a rank and no share); a task that
    was not measured has a sentence for its metric and no figure.
    """
    for name, found in sets.items():
        left_out = found["left_out"]["n"]
        for task, measured in found.items():
            if not _is_task(measured):
                continue
            base = {"set": name, "task": task.replace("_", " "), "left_out": left_out, "control": None, "rank": False}
            if "left_out" in measured:
                yield base | {"metric": f"not measured: {measured['left_out']}", "figure": None, "n": 0}
                continue
            if DIRECTIONS[0] in measured:
                for way in DIRECTIONS:
                    for metric, figure in measured[way].items():
                        rank = metric.endswith("rank")
                        yield base | {"metric": f"{way} {metric}", "figure": figure, "n": measured["n"], "rank": rank}
                continue
            for metric in _METRICS:
                if metric in measured:
                    control = measured.get("control_shuffled", {}).get(metric)
                    yield base | {
                        "metric": _NAMES.get(metric, metric),
                        "figure": measured[metric],
                        "n": measured["n"],
                        "control": control,
                    }
        asked = {task: found.get(task, {}) for task in ("vqa", "vqa_fusion")}
        for task, split, measured in ((task, *one) for task, splits in asked.items() for one in splits.items()):
            base = {"set": name, "task": f"{task.replace('_', ' ')}, {split}", "left_out": left_out, "control": None}
            for line in _vqa_lines(measured):
                yield base | {"rank": False} | line


def _vqa_lines(measured: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """metric, figure and n of one split of a VQA set."""
    if "left_out" in measured:
        yield {"metric": f"not measured: {measured['left_out']}", "figure": None, "n": 0}
        return
    for part in ("all", "closed", "open"):
        for system, own in measured.get(part, {}).items():
            if not isinstance(own, dict) or system == "model_less":
                continue
            for worth, words in _WORTH.items():
                if worth in own:
                    yield {"metric": f"{part}, {system}: {words}", "figure": own[worth], "n": own["n"]}
        for control, gap in measured.get(part, {}).get("model_less", {}).items():
            words = f"{part}, model less {control.replace('_', ' ')}: exact match, paired"
            yield {"metric": words, "figure": gap, "n": measured[part]["n"], "paired": True}
    for kind, own in measured["by_question_type"].items():
        yield {"metric": f"question type {kind}, model: exact match", "figure": own["exact"], "n": own["n"]}


def _is_task(entry: Any) -> bool:
    """Whether a set's entry is that of a task, measured or left out with a sentence; vqa has one a split."""
    if not isinstance(entry, dict):
        return False
    return isinstance(entry.get("left_out"), str) or not entry.keys().isdisjoint((*_METRICS, *DIRECTIONS))


def ends(figure: Mapping[str, Any]) -> str:
    """The interval of a share."""
    return f"{as_share(figure['low'])} - {as_share(figure['high'])}"


def as_share(value: float) -> str:
    return f"{value:.1%}"


def as_rank(value: float) -> str:
    return f"{value:.4g}"
