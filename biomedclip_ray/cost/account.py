"""The plan of a run that is about to start, and what the run then took beside it: a plan that is held to account."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from biomedclip_ray.config import Config, ConfigError
from biomedclip_ray.cost.estimate import money
from biomedclip_ray.cost.inputs import Cluster, Rates, World
from biomedclip_ray.cost.offers import machines
from biomedclip_ray.cost.source import known
from biomedclip_ray.cost.tables import cases
from biomedclip_ray.run.capacity import Capacity
from biomedclip_ray.run.record import Inventory
from biomedclip_ray.sources.bucket import SourceError


def foresee(config: Config, inventory: Inventory | None, capacity: Capacity, rates: Path) -> dict[str, Any] | str:
    """What each stage will take, {stage: {low, likely, high: seconds, money}}, with all nodes up that may come; or why
    there is no plan.

    Args:
        rates: as `plan.py --save` has kept them.
    """
    if inventory is None:
        return "own.alone=true reads nothing of PubMed Central, which is what is planned"
    try:
        cluster = machines(capacity, config.budget.prices, Cluster(1, 1)).cluster
        facts, measured = known(config, inventory, Rates(**json.loads(rates.read_text())))
        plan = cases(config, measured, World(**facts), cluster, frozenset({"versions", *facts}))
    except (ConfigError, SourceError) as error:  # a source that fails now is catalog's to report, with its retries
        return str(error)
    found: dict[str, Any] = {}
    for bound, (_, there, made) in zip(("low", "likely", "high"), plan, strict=True):
        for stage in made.stages:
            found.setdefault(stage.name, {})[bound] = {
                "seconds": round(3600 * stage.wall, 1),
                "money": round(money(stage, there), 4),
            }
    return found


def lines(plan: dict[str, Any] | str, stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stages that worked in this run beside their plan: {name, low, likely, high, took, ratio, money, paid}; what
    they took is over all runs at their product. The last is the sum.
    """
    found = []
    for stage in stages:
        if isinstance(plan, str) or stage["state"] == "skipped" or stage["name"] not in plan:
            continue
        planned = plan[stage["name"]]
        seconds = {bound: planned[bound]["seconds"] for bound in ("low", "likely", "high")}
        paid = {"money": planned["likely"]["money"], "paid": stage.get("money", 0.0)}
        found.append({"name": stage["name"], **seconds, "took": stage["seconds"], **paid})
    if len(found) > 1:
        total = {key: sum(line[key] for line in found) for key in found[0] if key != "name"}
        found.append({"name": "all of these", **total})
    return [line | {"ratio": line["took"] / line["likely"] if line["likely"] else None} for line in found]


def account_table(plan: dict[str, Any] | str, stages: list[dict[str, Any]]) -> Table | None:
    """The lines as a table; None where there are none."""
    found = lines(plan, stages)
    if not found:
        return None
    table = Table(title="Planned, with all nodes up that may come, and taken (seconds)", box=SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    priced = any(line["money"] or line["paid"] for line in found)
    for name in ("low", "likely", "high", "took", "took / likely", *(("money planned", "paid") if priced else ())):
        table.add_column(name, justify="right")
    for line in found:
        ratio = "" if line["ratio"] is None else f"{line['ratio']:.2f}"
        row = [f"{line[name]:,.1f}" for name in ("low", "likely", "high", "took")]
        extra = [f"{line['money']:,.2f}", f"{line['paid']:,.2f}"] if priced else []
        table.add_row(line["name"], *row, ratio, *extra)
    return table
