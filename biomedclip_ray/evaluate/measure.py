"""Figures, intervals and paired differences, all made of rows and all made here.

Report, terminal and JSON show what these functions return; none computes a figure of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from biomedclip_ray.evaluate import retrieval
from biomedclip_ray.evaluate.curves import curves
from biomedclip_ray.evaluate.intervals import METHOD, NO_DIFFERENCE, Clusters, Figure, difference, spread
from biomedclip_ray.evaluate.metrics import (
    Estimate,
    classification,
    confusion,
    log_odds,
    mean_estimates,
    multilabel,
    per_class,
    per_label,
    probabilities,
    reliability,
    temperature,
)
from biomedclip_ray.evaluate.tasks import logits_of
from biomedclip_ray.evaluate.vqa import MEASURES, SYSTEMS

PERMUTATIONS = 20
_VQA_PARTS = ("all", "closed", "open")


def estimates(kind: str, rows: pa.Table, draws: int, seed: int, about: Mapping[str, Any]) -> dict[str, Estimate]:
    """Every metric of a task's rows by name. `about`: common (classification), candidates (retrieval)."""
    if kind == "retrieval":
        return retrieval.estimates(rows, int(about["candidates"]), draws, seed)
    if kind == "vqa":
        return _vqa_estimates(rows, draws, seed)
    clusters = clusters_of(rows)
    if kind == "classification":
        labels = rows["label"].to_numpy()
        return classification(labels, logits_of(rows), clusters, draws, seed, about.get("common"))
    if kind == "multilabel":
        return multilabel(_labels_of(rows), logits_of(rows), clusters, draws, seed)
    columns = {"accuracy": rows["right"].to_numpy()}
    return mean_estimates(columns, clusters, draws, seed, {"accuracy": float(np.mean(rows["blind"].to_numpy()))})


def clusters_of(rows: pa.Table) -> Clusters:
    return Clusters.number(np.array(rows["cluster"].to_pylist()))


def measure(kind: str, rows: pa.Table, draws: int, seed: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """All that evaluation.json says of one task's rows (a pool of pairs apart, see `retrieval.measure_rows`).

    Args:
        about: classes; common: the class a blind guesser would name; logits_of_validation: (labels, logits) or None.
    """
    if kind == "vqa":
        return _vqa(rows, draws, seed)
    clusters = clusters_of(rows)
    found = {name: one.figure(clusters) for name, one in estimates(kind, rows, draws, seed, about).items()}
    out: dict[str, Any] = {"n": rows.num_rows, "clusters": clusters.count, "interval": METHOD, **found}
    if kind == "classification":
        out |= _classified(rows, seed, about)
    if kind == "multilabel":
        truth, scores = _labels_of(rows), logits_of(rows)
        out["absent"] = [name for c, name in enumerate(about["classes"]) if not truth[:, c].any()]
        out["per_class"] = per_label(truth, scores, list(about["classes"]))
        out["curves"] = curves(truth, scores, list(about["classes"]))
    return out


def _classified(rows: pa.Table, seed: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside a classification's metrics: classes, confusion, reliability, temperature and the control."""
    labels, logits, classes = rows["label"].to_numpy(), logits_of(rows), list(about["classes"])
    out: dict[str, Any] = {
        "classes": classes,
        "absent": [name for c, name in enumerate(classes) if not (labels == c).any()],
        "per_class": per_class(labels, logits, classes),
        "confusion": confusion(labels, logits),
        "reliability": reliability(labels, logits),
        "curves": curves(labels[:, None] == np.arange(len(classes)), log_odds(logits), classes),
        "control_shuffled": shuffled(rows, seed, about),
    }
    held = about.get("logits_of_validation")
    if held is not None:
        value = temperature(*held)
        out["temperature"] = {"value": value, "n_validation": len(held[0])}
        if value is None:
            out["temperature"]["left_out"] = (
                "no row of validation is answered wrongly: it would ask for no doubt at all"
            )
        else:
            alone = Clusters.number(np.arange(len(labels)))
            cooled = classification(labels, logits / value, alone, 0, seed)
            out["temperature"] |= {name: cooled[name].value for name in ("ece", "brier")}
    return out


def shuffled(rows: pa.Table, seed: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """The control: PERMUTATIONS times the labels of the test rows dealt out anew; mean and the range of 95% of them."""
    labels, logits = rows["label"].to_numpy(), logits_of(rows)
    alone, random = Clusters.number(np.arange(len(labels))), np.random.default_rng(seed)
    found: list[dict[str, Estimate]] = []
    for _ in range(PERMUTATIONS):
        found.append(classification(random.permutation(labels), logits, alone, 0, seed, about.get("common")))
    out: dict[str, Any] = {"permutations": PERMUTATIONS}
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        if name in found[0]:
            values = [one[name].value for one in found]
            low, high = np.quantile(values, [0.025, 0.975])
            out[name] = {"value": float(np.mean(values)), "low": float(low), "high": float(high)}
            out[name]["chance"] = found[0][name].chance
    return out


def compare(
    kind: str, ours: pa.Table, theirs: pa.Table, draws: int, seed: int, about: Mapping[str, Any], same: bool
) -> dict[str, Any]:
    """Paired differences, ours less theirs, over the rows that both have: metric -> {value, low, high, p, draws,
    dropped}.

    Args:
        same: both are of one bundle: exactly 0 [0, 0].
    """
    ours, theirs, left_out = shared_rows(ours, theirs)
    out: dict[str, Any] = {"n": ours.num_rows, "left_out": left_out, "metrics": {}}
    if not ours.num_rows:
        return out
    a, b = (estimates(kind, rows, draws, seed, about) for rows in (ours, theirs))
    parts = {name: _part_of(kind, ours, name) for name in a if name in b}
    for name, rows in parts.items():
        clusters = clusters_of(rows)
        gap = spread(a[name].drawn - b[name].drawn, clusters)
        figure = difference(a[name].value - b[name].value, gap, clusters, a[name].rows, a[name].most)
        out["metrics"][name] = dict(NO_DIFFERENCE) if same else figure
    out["answered"] = _answered(kind, ours, theirs)
    return out


def shared_rows(ours: pa.Table, theirs: pa.Table) -> tuple[pa.Table, pa.Table, int]:
    """The rows of samples that both have, in one order, and how many samples only one of them has."""
    keys = ["sample_id", *(["direction"] if "direction" in ours.column_names else [])]
    names = [list(zip(*(rows[key].to_pylist() for key in keys), strict=True)) for rows in (ours, theirs)]
    place = {name: row for row, name in enumerate(names[1])}
    mine = [row for row, name in enumerate(names[0]) if name in place]
    both = ours.take(mine), theirs.take([place[names[0][row]] for row in mine])
    return *both, len(names[0]) + len(names[1]) - 2 * len(mine)


def right_of(kind: str, rows: pa.Table) -> np.ndarray:
    """(n,) what each row's answer is worth, 0 to 1: a hit among the first ten for retrieval."""
    if kind == "retrieval":
        return retrieval.ranks_of(rows).hits(10)
    if kind == "vqa":
        return np.asarray(rows["model.exact"].to_numpy())
    if kind == "options":
        return np.asarray(rows["right"].to_numpy())
    logits = logits_of(rows)
    if kind == "multilabel":
        return np.asarray(((logits > 0) == _labels_of(rows)).mean(axis=1))
    chosen = logits == logits.max(axis=1, keepdims=True)
    return np.asarray(chosen[np.arange(len(logits)), rows["label"].to_numpy()] / chosen.sum(axis=1))


def confidence_of(rows: pa.Table) -> np.ndarray:
    """(n,) the largest probability of each row of a classification."""
    return np.asarray(probabilities(logits_of(rows)).max(axis=1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values corrected for their number (Holm 1979, Scand. J. Stat. 6:65); undefined ones are left out, and do not
    count.
    """
    known = sorted((p, name) for name, p in p_values.items() if np.isfinite(p))
    out, largest = {}, 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        out[name] = largest
    return out


def _answered(kind: str, ours: pa.Table, theirs: pa.Table) -> dict[str, float]:
    """Samples that both, only one or neither answered (ties by their parts)."""
    a, b = right_of(kind, ours), right_of(kind, theirs)
    both = float(np.minimum(a, b).sum())
    return {
        "both": both,
        "only_first": float(a.sum()) - both,
        "only_second": float(b.sum()) - both,
        "neither": float(len(a) - np.maximum(a, b).sum()),
    }


def _part_of(kind: str, rows: pa.Table, name: str) -> pa.Table:
    """The rows that a metric of `estimates` is made of."""
    if kind == "retrieval":
        return rows.filter(pc.equal(rows["direction"], name.partition(" ")[0]))
    if kind == "vqa":
        return _vqa_part(rows, name.partition(" ")[0], name)
    return rows


def _labels_of(rows: pa.Table) -> np.ndarray:
    flat = rows["labels"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(rows.num_rows, -1), bool)


def _vqa_part(rows: pa.Table, part: str, metric: str) -> pa.Table:
    kept = rows if part == "all" else rows.filter(pc.equal(rows["answer_type"], part))
    if "zero_shot" not in metric:
        return kept
    return kept.filter(pc.is_valid(kept["zero_shot.exact"])) if "zero_shot.exact" in kept.column_names else kept[:0]


def _vqa_estimates(rows: pa.Table, draws: int, seed: int) -> dict[str, Estimate]:
    """ "PART SYSTEM MEASURE" -> estimate; zero_shot rests on its own questions."""
    out: dict[str, Estimate] = {}
    for part in _VQA_PARTS:
        for system in SYSTEMS:
            own = _vqa_part(rows, part, system)
            names = [name for name in MEASURES if f"{system}.{name}" in rows.column_names]
            if not own.num_rows or not names:
                continue
            columns = {f"{part} {system} {name}": own[f"{system}.{name}"].to_numpy() for name in names}
            out |= mean_estimates(columns, clusters_of(own), draws, seed)
    return out


def _vqa(rows: pa.Table, draws: int, seed: int) -> dict[str, Any]:
    """Figures of all, closed and open questions and of each question type; the model against each control, paired."""
    found = _vqa_estimates(rows, draws, seed)
    out: dict[str, Any] = {"interval": METHOD}
    for part in _VQA_PARTS:
        mine = _vqa_part(rows, part, "")
        if not mine.num_rows:
            continue
        entry: dict[str, Any] = {"n": mine.num_rows, "answer_in_train": float(np.mean(mine["known"].to_numpy()))}
        clusters = clusters_of(mine)
        for system in SYSTEMS:
            names = [name for name in found if name.startswith(f"{part} {system} ")]
            own = _vqa_part(rows, part, system)
            if names:
                figures = {name.rpartition(" ")[2]: found[name].figure(clusters_of(own)) for name in names}
                entry[system] = {"n": own.num_rows} | figures
        entry["model_less"] = {}
        for system in ("question_only", "other_images", "majority"):
            a, b = found[f"{part} model exact"], found[f"{part} {system} exact"]
            gap = spread(a.drawn - b.drawn, clusters)
            entry["model_less"][system] = difference(a.value - b.value, gap, clusters, a.rows)
        out[part] = entry
    out["by_question_type"] = {}
    for kind in sorted(set(rows["question_type"].to_pylist())):
        own = rows.filter(pc.equal(rows["question_type"], kind))
        clusters = clusters_of(own)
        exact: dict[str, Figure] = {}
        for name, one in mean_estimates({"exact": own["model.exact"].to_numpy()}, clusters, draws, seed).items():
            exact[name] = one.figure(clusters)
        out["by_question_type"][kind] = {"n": own.num_rows} | exact
    return out
