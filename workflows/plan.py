"""What a run will cost before it is started: requests, TB, core-hours, hours and money for all of PubMed Central.

    python workflows/plan.py workflows/configs/biomedclip_vit_b16.yaml --nodes 8 --cpus 32 --assume node_hour=1.60
    python workflows/plan.py workflows/configs/sample.yaml --nodes 4 --cpus 16 --measure 200

Catalog, ingest and preprocess: what training costs depends on the GPUs, and curate takes minutes. Rates are those in
rates.json beside this file, or measured on this machine with --measure. Every assumption is printed and can be changed
with --assume.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from biomedclip_ray.config import Config, ConfigError, IngestSelect, PreprocessSelect, load
from biomedclip_ray.cost.estimate import Cluster, Plan, Rates, World, assume, assumptions, estimate
from biomedclip_ray.sources.bucket import SourceError

RATES = Path(__file__).with_name("rates.json")


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        config = load(options.config, options.overrides)
        world, cluster = assume(World(), Cluster(options.nodes, options.cpus), options.assume)
        rates, world = _rates(config, options.measure, world, console)
        if options.save:
            kept = {k: v if isinstance(v, str) else round(v, 2) for k, v in dataclasses.asdict(rates).items()}
            RATES.write_text(json.dumps(kept, indent=1) + "\n")
        plan = estimate(config, rates, world, cluster)
    except (ConfigError, SourceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(console, plan, rates, world, cluster)
    return 0


def _rates(config: Config, articles: int | None, world: World, console: Console) -> tuple[Rates, World]:
    """Measured now, or as shipped. Raises ConfigError where a selection's share is needed and not known."""
    selections = {
        "article_share": ("ingest.select", config.ingest.select != IngestSelect()),
        "text_share": ("preprocess.select", config.preprocess.select != PreprocessSelect()),
    }
    unknown = {name: key for name, (key, set_) in selections.items() if set_ and getattr(world, name) == 1.0}
    if articles is None:
        for name, key in unknown.items():
            raise ConfigError(
                f"{key} leaves something out, and how much passes is not known: "
                f"add --measure N on a folder of articles, or --assume {name}=0.1"
            )
        return Rates(**json.loads(RATES.read_text())), world
    from biomedclip_ray.cost.measure import measure

    with console.status(f"Measuring on {articles} articles of {config.source.uri}"):
        rates, shares = measure(config, articles)
    return rates, dataclasses.replace(world, **{name: shares[name] for name in unknown})


def show(console: Console, plan: Plan, rates: Rates, world: World, cluster: Cluster) -> None:
    """Print the plan, what it saves and adds, the rates, and the assumptions."""
    title = f"What the configuration selects of PubMed Central, on {cluster.nodes} nodes of {cluster.cpus} cores"
    table = Table(title=title, box=SIMPLE_HEAD, show_footer=True)
    total = (
        ("stage", "all"),
        ("requests", f"{sum(s.requests for s in plan.stages) / 1e6:,.1f} M"),
        ("read", _size(sum(s.bytes_in for s in plan.stages))),
        ("written", _size(sum(s.bytes_out for s in plan.stages))),
        ("core-hours", f"{plan.core_hours:,.0f}"),
        ("cores", ""),
        ("network", ""),
        ("requests", ""),
        ("hours", f"{plan.hours:,.1f}"),
        ("what binds", plan.binds),
    )
    for number, (name, foot) in enumerate(total):
        table.add_column(name, foot, justify="left" if number in (0, 9) else "right", no_wrap=True)
    for stage in plan.stages:
        alone = (f"{stage.hours[limit]:,.1f} h" for limit in ("cores", "network", "requests"))
        facts = (
            f"{stage.requests / 1e6:,.1f} M",
            _size(stage.bytes_in),
            _size(stage.bytes_out),
            f"{stage.core_hours:,.0f}",
        )
        table.add_row(stage.name, *facts, *alone, f"{stage.wall:,.1f}", stage.binds)
    console.print(table)
    word = "of which panels take" if plan.panels_on else "panels, which are off, would add"
    console.print(f"{plan.core_hours:,.0f} core-hours; {word} {plan.panels_core_hours:,.0f}.")
    if plan.larger_core_hours:
        console.print(
            f"Pictures measured have {rates.picture_bytes / 1e3:,.0f} KB, media_bytes has {plan.larger:.1f} times as "
            "many: if "
            f"all of that were pixels, {plan.larger_core_hours:,.0f} core-hours more (--assume "
            f"picture_scale={plan.larger:.1f})."
        )
    for name, (requests, size) in plan.unfetched.items():
        console.print(f"{name} leaves {_size(size)} and {requests / 1e6:,.1f} M requests of pictures unfetched.")
    if cluster.node_hour or cluster.egress_gb:
        console.print(f"Machines {plan.machine_money:,.0f}, egress {plan.egress_money:,.0f} in your currency.")
    console.print(f"Keeping the products costs {plan.storage_money_month:,.0f} a month in object storage.")
    measured = Table("rate", "value", title=f"Measured: {rates.measured}", box=SIMPLE_HEAD)
    for entry in dataclasses.fields(rates):
        if entry.name != "measured":
            measured.add_row(entry.name, f"{getattr(rates, entry.name):,.2f}")
    console.print(measured)
    assumed = Table("assumed", "value", "why", title="Assumed: change with --assume NAME=VALUE", box=SIMPLE_HEAD)
    for name, value, why in assumptions(world, cluster):
        assumed.add_row(name, f"{value:,.10g}", why)
    console.print(assumed)


def _size(size: float) -> str:
    return f"{size / 1e12:,.1f} TB" if size >= 1e11 else f"{size / 1e9:,.1f} GB"


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", help="dotted overrides, as for biomedclip.py")
    parser.add_argument("--nodes", type=int, required=True, help="machines")
    parser.add_argument("--cpus", type=int, required=True, help="cores of each")
    parser.add_argument("--assume", action="append", default=[], metavar="NAME=VALUE", help="change an assumption")
    parser.add_argument("--measure", type=_positive, metavar="N", help="measure on N articles of source.uri, a folder")
    parser.add_argument("--save", action="store_true", help="keep the rates in use in rates.json, for plans to come")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
