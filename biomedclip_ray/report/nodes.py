"""What the run took, in its report: the nodes that were up over time, by stage, with what they cost."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from biomedclip_ray.cost.account import lines
from biomedclip_ray.report import svg
from biomedclip_ray.report.words import duration_text
from biomedclip_ray.store.place import Place

_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
_MOST_STEPS = 2000  # of a plot 720 pixels wide


def nodes_section(root: str, run: dict[str, Any]) -> Markup:
    """The section for the run that `run.json` names; empty where it counted no nodes."""
    try:
        record = json.loads(Place(root).read(f"runs/{run['run']}.json")) if run.get("run") else {}
    except FileNotFoundError:  # the root was copied without its records
        record = {}
    found = record.get("nodes")
    if not found or not found[-1]["at"]:
        return Markup()
    kinds = sorted({kind for step in found for kind in step["up"]})
    spent = dict.fromkeys(kinds, 0.0)
    for entry in record["spent"]:
        for kind, seconds in entry["node_seconds"].items():
            spent[kind] = spent.get(kind, 0.0) + seconds
    text = resources.files("biomedclip_ray.report").joinpath("nodes.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": duration_text, "hours": hours_text}
    peak = {kind: max(step["up"].get(kind, 0) for step in found) for kind in kinds}
    rendered = environment.from_string(text).render(
        run=run["run"],
        plot=_plot(found, kinds),
        kinds=[(kind, peak[kind], spent[kind]) for kind in kinds],
        stages=[stage for stage in run["stages"] if "this_run" in stage],
        between=next((entry for entry in record["spent"] if entry["stage"] == ""), None),
        money=record["money"],
        account=lines(record.get("plan", ""), run["stages"]),
    )
    return Markup(rendered)


def hours_text(node_seconds: dict[str, float]) -> str:
    """{"cpu": 5400, "gpu": 36} -> "cpu 1.50, gpu 0.01"."""
    return ", ".join(f"{kind} {seconds / 3600:,.2f}" for kind, seconds in sorted(node_seconds.items()))


def _plot(found: list[dict[str, Any]], kinds: list[str]) -> Markup:
    end = found[-1]["at"]
    size, unit = next((size, unit) for size, unit in _UNITS if end >= 2 * size or size == 1)
    every = max(1, len(found) // _MOST_STEPS)
    series = [svg.Step(step["at"] / size, step["stage"], step["up"]) for step in found[:-1:every]]
    most = max(sum(step["up"].values()) for step in found)
    title = f"Nodes over time, at most {most}: {', '.join(kinds)}"
    return svg.steps(series, end / size, kinds, title, unit)
