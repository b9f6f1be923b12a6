"""A plan as a person reads it: stages, what can be asked of them, what was measured and what is assumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table

from biomedclip_ray.config import Config
from biomedclip_ray.cost.estimate import money
from biomedclip_ray.cost.inputs import Cluster, Rates, World, assumptions, bounded
from biomedclip_ray.cost.later import Whole, whole
from biomedclip_ray.cost.offers import (
    cheapest,
    delta,
    preprints,
    serving,
    spent,
    spot_losses,
    waste_from,
)

Case = tuple[World, Cluster, Whole]


@dataclasses.dataclass(frozen=True)
class Cases:
    """The same run where everything is cheap, likely, and dear."""

    low: Case
    likely: Case
    high: Case

    def __iter__(self) -> Iterator[Case]:
        yield from (self.low, self.likely, self.high)


def cases(config: Config, rates: Rates, world: World, cluster: Cluster, fixed: frozenset[str]) -> Cases:
    """A plan with each assumption at its low bound, as it is, and at its high bound; `fixed` ones are as somebody has
    set them.
    """
    low, high = ((bounded(world, bound, fixed), bounded(cluster, bound, fixed)) for bound in ("cheap", "dear"))
    found = [(*case, whole(config, rates, *case)) for case in (low, (world, cluster), high)]
    return Cases(*found)


def stages_table(plan: Cases, title: str) -> Table:
    """Each stage: what it reads, computes and writes, hours and money as low, likely and high, and what binds."""
    table = Table(title=title, box=SIMPLE_HEAD, show_footer=True)
    _, cluster, likely = plan.likely
    hours = [sum(stage.wall for stage in case.stages) for _, _, case in plan]
    priced = bool(cluster.node_hour or cluster.gpu_hour or cluster.head_hour)
    foot = {
        "stage": "all",
        "requests": f"{sum(stage.requests for stage in likely.stages) / 1e6:,.1f} M",
        "read": size_text(sum(stage.bytes_in for stage in likely.stages)),
        "written": size_text(sum(stage.bytes_out for stage in likely.stages)),
        "core-h": f"{sum(stage.core_hours for stage in likely.stages):,.0f}",
        "GPU-h": f"{sum(stage.gpu_hours for stage in likely.stages):,.0f}",
        "hours low": f"{hours[0]:,.1f}",
        "likely": f"{hours[1]:,.1f}",
        "high": f"{hours[2]:,.1f}",
        "what binds": "",
    }
    if priced:
        low, middle, high = (spent(case, machines) for _, machines, case in plan)
        foot |= {"money low": f"{low:,.0f}", " likely": f"{middle:,.0f}", " high": f"{high:,.0f}"}
    for name, footer in foot.items():
        table.add_column(
            name.strip(), footer, justify="left" if name in ("stage", "what binds") else "right", no_wrap=True
        )
    by_name = [{stage.name: stage for stage in case.stages} for _, _, case in plan]
    for stage in likely.stages:
        walls = [found[stage.name].wall for found in by_name]
        row = [
            stage.name,
            f"{stage.requests / 1e6:,.2f} M",
            size_text(stage.bytes_in),
            size_text(stage.bytes_out),
            f"{stage.core_hours:,.1f}",
            f"{stage.gpu_hours:,.1f}" if stage.gpu_hours else "",
            *(f"{wall:,.2f}" for wall in walls),
            stage.binds if stage.hours[stage.binds] > stage.fixed else "start",
        ]
        if priced:
            every = zip(by_name, plan, strict=True)
            row += [f"{money(found[stage.name], machines):,.2f}" for found, (_, machines, _) in every]
        table.add_row(*row)
    return table


def answers(config: Config, rates: Rates, plan: Cases, deadline: float | None) -> Iterator[str]:
    """What else is asked of a plan, one sentence each."""
    world, cluster, likely = plan.likely
    if likely.lacking:
        yield likely.lacking + "."
    if deadline is not None:
        found = cheapest(config, rates, world, cluster, deadline)
        if found is None:
            yield f"Within {deadline:g} hours: with no number of these nodes; {likely.hours:,.1f} with all of them."
        else:
            made = whole(config, rates, world, found)
            gpus = f" and {found.gpu_nodes} with GPUs" if found.gpu_nodes else ""
            cost = f", {spent(made, found):,.0f}" if found.node_hour or found.gpu_hour else ""
            yield f"Cheapest within {deadline:g} hours: {found.nodes} nodes{gpus}: {made.hours:,.1f} hours{cost}."
    waste = waste_from(config, rates, world, cluster)
    if waste:
        listed = ", ".join(f"{name} {nodes}" for name, nodes in waste.items())
        yield f"More nodes than these are waste, for the source answers no faster: {listed}."
    losses = spot_losses(config, likely, cluster)
    told = "; ".join(
        f"{name} {loss.node_hours:,.2f} node-hours{f' ({loss.money:,.2f})' if loss.money else ''} x {loss.times:,.1f}"
        for name, loss in losses.items()
        if name != "deploy"
    )
    yield f"A spot node that is lost costs, and how often to expect it: {told}."
    month = serving(config, likely, cluster)
    yield (
        f"A month of serving: {month.replicas} replicas on {month.nodes} nodes"
        f"{f', {month.money:,.0f}' if month.money else ''}; products and index in storage {month.storage:,.0f}."
    )
    if config.source.uri.startswith("s3://pmc-oa-opendata"):
        fresh = delta(config, rates, world, cluster)
        requests = sum(stage.requests for stage in fresh.stages) / 1e6
        price = spent(fresh, cluster)
        yield (
            f"A month's new articles (--sync, without training): {requests:,.2f} M requests, "
            f"{size_text(sum(stage.bytes_in for stage in fresh.stages[:3]))} of the source, {fresh.hours:,.1f} hours"
            f"{f', {price:,.0f}' if price else ''}."
        )
    for name, (low, middle, high) in preprints(rates, world, cluster).items():
        yield (
            f"{name} (MECA, the reader pays): {middle.packages / 1e3:,.0f} thousand packages, "
            f"{middle.requests / 1e6:,.1f} M requests for {middle.request_money:,.2f}, {size_text(middle.size)}, "
            f"{middle.core_hours:,.0f} core-hours; outside of us-east-1 {middle.egress_money:,.0f} besides "
            f"({low.egress_money:,.0f} to {high.egress_money:,.0f})."
        )


def facts_tables(rates: Rates, plan: Cases) -> Sequence[RenderableType]:
    """What was measured, and every assumption with its bounds and its reason."""
    measured = Table("rate", "value", title=f"Measured: {rates.measured}", box=SIMPLE_HEAD)
    for entry in dataclasses.fields(rates):
        if entry.name != "measured":
            measured.add_row(entry.name, f"{getattr(rates, entry.name):,.2f}")
    assumed = Table(title="Assumed: change with --assume NAME=VALUE", box=SIMPLE_HEAD)
    for name in ("assumed", "low", "likely", "high", "why"):
        assumed.add_column(name, justify="left" if name in ("assumed", "why") else "right", overflow="fold")
    listed = [{name: value for name, value, _ in assumptions(*case[:2])} for case in plan]
    for name, _, why in assumptions(*plan.likely[:2]):
        low, likely, high = (f"{values[name]:,.10g}" for values in listed)
        assumed.add_row(name, low if low != likely else "", likely, high if high != likely else "", why)
    return measured, assumed


def size_text(size: float) -> str:
    """0.45e12 -> "0.5 TB"."""
    return f"{size / 1e12:,.1f} TB" if size >= 1e11 else f"{size / 1e9:,.1f} GB"


def show(console: Console, config: Config, rates: Rates, plan: Cases, title: str, deadline: float | None) -> None:
    """Print all of it."""
    _, cluster, likely = plan.likely
    source = likely.source
    console.print(stages_table(plan, title))
    word = "of which panels take" if source.panels_on else "panels, which are off, would add"
    console.print(f"{source.core_hours:,.0f} core-hours to the pairs; {word} {source.panels_core_hours:,.0f}.")
    if source.larger_core_hours:
        console.print(
            f"Images measured have {rates.image_bytes / 1e3:,.0f} KB, media_bytes has {source.larger:.1f} times as "
            f"many: if all of that were pixels, {source.larger_core_hours:,.0f} core-hours more (--assume "
            f"image_scale={source.larger:.1f})."
        )
    for name, (requests, size) in source.unfetched.items():
        console.print(f"{name} leaves {size_text(size)} and {requests / 1e6:,.1f} M requests of images unfetched.")
    if cluster.node_hour or cluster.gpu_hour or cluster.egress_gb:
        console.print(
            f"Machines {spent(likely, cluster) - source.egress_money:,.0f}, egress {source.egress_money:,.0f} in your "
            "currency."
        )
    console.print(f"Keeping the products costs {source.storage_money_month:,.0f} a month in object storage.")
    for line in answers(config, rates, plan, deadline):
        console.print(line, highlight=False)
    console.print(*facts_tables(rates, plan))
