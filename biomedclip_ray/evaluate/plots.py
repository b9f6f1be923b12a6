"""The images of an evaluation: recall beside chance and control, and where the right answer stands.

Drawn with matplotlib's object interface and the Agg canvas: no display, no global state.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from biomedclip_ray.evaluate.ranks import DIRECTIONS


def draw(result: dict[str, Any]) -> dict[str, bytes]:
    """PNG bytes by file name, from the content of evaluation.json."""
    images = {"recall.png": _recall(result), "ranks.png": _ranks(result)}
    if result["by_kind"]:
        images["recall_by_kind.png"] = _by_kind(result)
    return images


def histogram(ranks: NDArray[np.float64], n: int) -> dict[str, list[float]]:
    """Counts of ranks between powers of two: edges 1, 2, 4, .. above n, and one count fewer."""
    edges = 2.0 ** np.arange(int(np.floor(np.log2(n))) + 2)
    counts, _ = np.histogram(ranks, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _recall(result: dict[str, Any]) -> bytes:
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, direction in zip(figure.subplots(1, 2, sharey=True), DIRECTIONS, strict=True):
        names = [name for name in result["retrieval"][direction] if name.startswith("recall@")]
        place = np.arange(len(names))
        for offset, label, source in (
            (-0.2, "model", result["retrieval"]),
            (0.2, "partners at random", result["retrieval"]["control_shuffled"]),
        ):
            figures = [source[direction][name] for name in names]
            axes.bar(place + offset, [f["value"] for f in figures], 0.38, yerr=_errors(figures), capsize=3, label=label)
        chance = [result["retrieval"][direction][name]["chance"] for name in names]
        axes.hlines(chance, place - 0.42, place + 0.42, colors="black", linestyles="dashed", label="chance")
        axes.set_xticks(place, [name.removeprefix("recall") for name in names])
        axes.set_title(f"recall, {direction.replace('_', ' ')}, n = {result['n']}")
    figure.axes[0].set_ylim(0, 1)
    return _png(figure)


def _ranks(result: dict[str, Any]) -> bytes:
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, direction in zip(figure.subplots(1, 2, sharey=True), DIRECTIONS, strict=True):
        bins = result["rank_histogram"][direction]
        edges = np.array(bins["edges"])
        axes.bar(edges[:-1], bins["counts"], np.diff(edges), align="edge", edgecolor="white")
        # under random order each rank is equally likely
        expected = result["n"] * np.diff(np.minimum(edges, result["n"] + 1)) / result["n"]
        axes.stairs(expected, edges, color="black", linestyle="dashed", label="chance")
        axes.set_xscale("log", base=2)
        axes.set_xticks(edges[:-1], [f"{edge:.0f}" for edge in edges[:-1]])
        axes.set_xlabel("rank of the right answer")
        axes.set_title(direction.replace("_", " "))
    figure.axes[0].set_ylabel("queries")
    return _png(figure)


def _by_kind(result: dict[str, Any]) -> bytes:
    kinds = list(result["by_kind"])
    figure = Figure(figsize=(8, 1 + 0.45 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    place = np.arange(len(kinds))
    for offset, direction in zip((-0.2, 0.2), DIRECTIONS, strict=True):
        figures = [result["by_kind"][kind][direction]["recall@10"] for kind in kinds]
        values = [f["value"] for f in figures]
        axes.barh(place + offset, values, 0.38, xerr=_errors(figures), capsize=2, label=direction.replace("_", " "))
    chance = [result["by_kind"][kind][DIRECTIONS[0]]["recall@10"]["chance"] for kind in kinds]
    axes.vlines(chance, place - 0.42, place + 0.42, colors="black", linestyles="dashed", label="chance")
    axes.set_yticks(place, [f"{kind} (n = {result['by_kind'][kind]['n']})" for kind in kinds])
    axes.set_xlim(0, 1)
    axes.set_xlabel("recall@10 within the kind")
    return _png(figure)


def _errors(figures: list[dict[str, float]]) -> NDArray[np.float64]:
    """Interval ends as distances from the value, (2, m); a percentile end may lie on the value's other side."""
    return np.array([[max(0, f["value"] - f["low"]), max(0, f["high"] - f["value"])] for f in figures]).T


def _png(figure: Figure) -> bytes:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    sink = io.BytesIO()
    FigureCanvasAgg(figure).print_png(sink)
    return sink.getvalue()
