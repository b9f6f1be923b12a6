"""Any number of bundles on the same sets: paired differences with Holm's correction over the sets, as HTML, CSV and
LaTeX.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from biomedclip_ray.evaluate.measure import compare, holm

MAIN = {
    "classification": "accuracy",
    "multilabel": "auroc",
    "options": "accuracy",
    "retrieval": "text_to_image recall@10",
    "vqa": "all model exact",
}
"""The metric of a task's kind that tables show."""

Rows = Mapping[str, pa.Table]
"""Bundle -> the rows of one task on one set."""


def comparison(
    tasks: Mapping[tuple[str, str], tuple[str, Rows, Mapping[str, Any]]],
    draws: int,
    seed: int,
    ids: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Every pair of bundles on every task of every set.

    Args:
        ids: bundle -> its bundle_id: two of one id are the same and differ by exactly nothing.
        tasks: (set, task) -> (kind, bundle -> rows, about).

    Returns:
        For each pair of bundles: {first, second, wins, losses, ties, sets: [{set, task, n, left_out, metrics,
            answered}]}; p values of the
        main metric are corrected over the sets ("holm"). Won is what is apart after the correction at 0.05.
    """
    ids = ids or {}
    bundles = list(dict.fromkeys(name for _, rows, _ in tasks.values() for name in rows))
    out = []
    for number, first in enumerate(bundles):
        for second in bundles[number + 1 :]:
            entries, p_values = [], {}
            for (where, task), (kind, rows, about) in tasks.items():
                if first not in rows or second not in rows:
                    continue
                found = compare(
                    kind,
                    rows[first],
                    rows[second],
                    draws,
                    seed,
                    about,
                    ids.get(first, first) == ids.get(second, second),
                )
                main = found["metrics"].get(MAIN[kind])
                entries.append({"set": where, "task": task, "main": MAIN[kind], **found})
                if main is not None:
                    p_values[f"{where} {task}"] = main["p"]
            corrected = holm(p_values)
            tally = {"wins": 0, "losses": 0, "ties": 0}
            for entry in entries:
                main = entry["metrics"].get(entry["main"])
                name = f"{entry['set']} {entry['task']}"
                if main is None or name not in corrected:
                    continue
                main["holm"] = corrected[name]
                apart = main["holm"] < 0.05
                tally["ties" if not apart else "wins" if main["value"] > 0 else "losses"] += 1
            out.append({"first": first, "second": second, **tally, "sets": entries})
    return out


def table(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line a set and task, one column a bundle: the main metric with its interval and how many images were left
    out; then the macro means over specialties (a set without one stands for itself).

    Args:
        results: bundle -> its "sets" (as in evaluation.json).
    """
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for bundle, sets in results.items():
        for name, found in sets.items():
            splits = {
                f"{task} {split}": one for task in ("vqa", "vqa_fusion") for split, one in found.get(task, {}).items()
            }
            for task, measured in (found | splits).items():
                figure, metric = main_figure(measured) if isinstance(measured, dict) else (None, "")
                if figure is not None:
                    line = lines.setdefault((name, task), {"set": name, "task": task, "metric": metric, "bundles": {}})
                    line |= {"warnings": found.get("warnings", []), "specialty": found.get("specialty") or name}
                    line["bundles"][bundle] = figure | {"left_out": found["left_out"]["n"]}
    out = list(lines.values())
    for task in dict.fromkeys(line["task"] for line in out):
        mine = [line for line in out if line["task"] == task and len(line["bundles"]) == len(results)]
        fields: dict[str, list[dict[str, Any]]] = {}
        for line in mine:
            fields.setdefault(line["specialty"], []).append(line)
        if len(fields) > 1:
            kind = "sets" if all(line["specialty"] == line["set"] for line in mine) else "specialties"
            means = {
                bundle: {
                    "value": float(
                        np.mean([np.mean([one["bundles"][bundle]["value"] for one in own]) for own in fields.values()])
                    )
                }
                for bundle in results
            }
            out.append(
                {
                    "set": f"macro over {len(fields)} {kind}",
                    "task": task,
                    "metric": mine[0]["metric"],
                    "bundles": means,
                }
            )
    return out


def main_figure(measured: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The main figure of one task's entry in evaluation.json, and its name."""
    if "text_to_image" in measured:
        return measured["text_to_image"].get("recall@10"), "text to image recall@10"
    if "accuracy" in measured:
        return measured["accuracy"], "accuracy"
    if "auroc" in measured:
        return measured["auroc"], "auroc"
    if "all" in measured and "model" in measured["all"]:
        return measured["all"]["model"]["exact"], "exact match"
    return None, ""


def as_csv(lines: list[dict[str, Any]], bundles: list[str]) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    ends = ("value", "low", "high", "left_out")
    names = [f"{bundle} {end.replace('_', ' ')}" for bundle in bundles for end in ends]
    writer.writerow([*_HEAD, *names, "warnings"])
    for line in lines:
        figures = [line["bundles"].get(bundle, {}) for bundle in bundles]
        cells = [figure.get(end, "") for figure in figures for end in ends]
        writer.writerow([*(line[key] for key in _HEAD), *cells, "; ".join(line.get("warnings", []))])
    return sink.getvalue()


def as_latex(lines: list[dict[str, Any]], bundles: list[str]) -> str:
    """A tabular of percentages; the best of a line is bold, and below stand the sets' warnings."""

    def shown(figure: Mapping[str, Any], best: bool) -> str:
        text = rf"\textbf{{{100 * figure['value']:.1f}}}" if best else f"{100 * figure['value']:.1f}"
        ends = f" [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]" if "low" in figure else ""
        return text + ends + (f", {figure['left_out']} left out" if figure.get("left_out") else "")

    rows = [" & ".join([*(key.capitalize() for key in _HEAD), *map(_tex, bundles)]) + r" \\ \midrule"]
    for names, cells in _cells(lines, bundles, shown):
        rows.append(" & ".join([*map(_tex, names), *(cell or "--" for cell in cells)]) + r" \\")
    width = 3 + len(bundles)
    notes = [rf"\multicolumn{{{width}}}{{l}}{{{_tex(note)}}} \\" for note in warnings_of(lines)]
    head = r"\begin{tabular}{lll" + "r" * len(bundles) + "}\n\\toprule\n"
    return head + "\n".join([*rows, r"\bottomrule", *notes]) + "\n\\end{tabular}\n"


def as_html(lines: list[dict[str, Any]], bundles: list[str]) -> str:
    """A bare <table>; the best of a line is bold, and at its foot stand the sets' warnings."""

    def shown(figure: Mapping[str, Any], best: bool) -> str:
        text = f"<b>{100 * figure['value']:.1f}%</b>" if best else f"{100 * figure['value']:.1f}%"
        ends = f" <small>{100 * figure['low']:.1f} – {100 * figure['high']:.1f}</small>" if "low" in figure else ""
        left = f" <small>({figure['left_out']} left out)</small>" if figure.get("left_out") else ""
        return f'<td class="num">{text}{ends}{left}</td>'

    head = "".join(f"<th>{html.escape(name)}</th>" for name in _HEAD)
    head += "".join(f'<th class="num">{html.escape(name)}</th>' for name in bundles)
    body = []
    for names, cells in _cells(lines, bundles, shown):
        columns = [f"<td>{html.escape(name)}</td>" for name in names] + [
            cell or '<td class="num">–</td>' for cell in cells
        ]
        body.append(f"<tr>{''.join(columns)}</tr>")
    wide = f'<tr><td class="warn" colspan="{len(_HEAD) + len(bundles)}">'
    notes = "".join(f"{wide}{html.escape(note)}</td></tr>" for note in warnings_of(lines))
    foot = f"<tfoot>{notes}</tfoot>" if notes else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>{foot}</table>\n"


def warnings_of(lines: list[dict[str, Any]]) -> list[str]:
    """What is odd about the sets of a table, a line a set: "SET: test holds 30 rows, 600 are stated"."""
    every = (f"{line['set']}: {'; '.join(line['warnings'])}" for line in lines if line.get("warnings"))
    return list(dict.fromkeys(every))


_HEAD = ("set", "task", "metric")


def _cells(
    lines: list[dict[str, Any]], bundles: list[str], shown: Callable[[Mapping[str, Any], bool], str]
) -> Iterator[tuple[list[str], list[str | None]]]:
    """For each line its set, task and metric, and for each bundle `shown(figure, whether it is the best)`; None where
    it was not measured."""
    for line in lines:
        best = max((figure["value"] for figure in line["bundles"].values()), default=None)
        figures = [line["bundles"].get(bundle) for bundle in bundles]
        cells = [f and shown(f, f["value"] == best) for f in figures]
        yield [line["set"], line["task"].replace("_", " "), line["metric"].replace("_", " ")], cells


def _tex(text: str) -> str:
    for sign in ("\\", "&", "%", "$", "#", "_", "{", "}", "~", "^"):
        text = text.replace(sign, {"\\": r"\textbackslash ", "~": r"\~{}", "^": r"\^{}"}.get(sign, rf"\{sign}"))
    return text
