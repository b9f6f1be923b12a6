"""What a run will cost before it is started: requests, TB, core-hours, GPU-hours, hours and money, stage by stage.

    python workflows/plan.py workflows/configs/biomedclip_vit_b16.yaml --cluster cluster/aws.yaml \
        'budget.prices={cpu_spot: 0.57, cpu: 1.43, gpu: 1.32, head: 0.40}' --deadline 72
    python workflows/plan.py workflows/configs/biomedclip_vit_b16.yaml --nodes 8 --cpus 32 --assume node_hour=1.60
    python workflows/plan.py workflows/configs/sample.yaml --nodes 4 --cpus 16 --measure 200

Everything as low, likely and high; besides, the cheapest nodes for a deadline, from how many on more are waste, what a
lost spot node costs, a month of serving, a month's new articles, and preprints. Rates are those in rates.json beside
this file, or measured on this machine with --measure. Every assumption is printed and can be changed with --assume.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

# The checkout is what runs, whatever version is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from biomedclip_ray.config import Config, ConfigError, IngestSelect, PreprocessSelect, load
from biomedclip_ray.config.operate import ROLES
from biomedclip_ray.cost.inputs import Cluster, Rates, World, assume
from biomedclip_ray.cost.offers import machines
from biomedclip_ray.cost.tables import cases, show
from biomedclip_ray.run.capacity import of_file
from biomedclip_ray.sources.bucket import SourceError

RATES = Path(__file__).with_name("rates.json")


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        config = load(options.config, options.overrides)
        cluster, on = _cluster(options, config)
        world, cluster = assume(World(), cluster, options.assume)
        rates, world = _rates(config, options.measure, world, console)
        if options.save:
            kept = {k: v if isinstance(v, str) else round(v, 2) for k, v in dataclasses.asdict(rates).items()}
            RATES.write_text(json.dumps(kept, indent=1) + "\n")
        fixed = frozenset(item.partition("=")[0] for item in options.assume)
        plan = cases(config, rates, world, cluster, fixed)
    except (ConfigError, SourceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(console, config, rates, plan, f"What the configuration selects of PubMed Central, on {on}", options.deadline)
    return 0


def _cluster(options: argparse.Namespace, config: Config) -> tuple[Cluster, str]:
    """The machines, and what they are called. Raises ConfigError where neither a file nor numbers say."""
    if options.cluster:
        if options.nodes or options.cpus or options.gpu_nodes:
            raise ConfigError("--cluster FILE says what nodes there are; leave out --nodes, --cpus and --gpu-nodes")
        capacity = of_file(options.cluster)
        names = [*ROLES, *(kind.name for kind in capacity.kinds)]
        for name in config.budget.prices:
            if name not in names:
                raise ConfigError(
                    f"budget.prices.{name}: {options.cluster} has no such node type; it may be one of "
                    f"{', '.join(dict.fromkeys(names))}"
                )
        found = machines(capacity, config.budget.prices, Cluster(1, 1))
        there = found.cluster
        on = f"{there.nodes} {found.cpu.name} of {there.cpus} cores"
        if found.gpu is not None:
            on += f" and {there.gpu_nodes} {found.gpu.name} of {there.gpus} GPUs"
        return there, on
    if options.nodes is None or options.cpus is None:
        raise ConfigError("say on what: --cluster FILE, or --nodes N --cpus M (and --gpu-nodes N --gpus M)")
    there = Cluster(options.nodes, options.cpus, options.gpu_nodes, options.gpus)
    gpus = f" and {there.gpu_nodes} of {there.gpus} GPUs" if there.gpu_nodes else ""
    return there, f"{there.nodes} nodes of {there.cpus} cores{gpus}"


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


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def _hours(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError("must be a number of hours above 0")
    return number


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", help="dotted overrides, as for biomedclip.py; budget.prices are used")
    parser.add_argument("--cluster", metavar="FILE", help="what the cluster is made from; all its nodes up")
    parser.add_argument("--nodes", type=_positive, help="instead: machines")
    parser.add_argument("--cpus", type=_positive, help="cores of each")
    parser.add_argument("--gpu-nodes", type=_positive, default=0, help="machines with GPUs besides")
    parser.add_argument("--gpus", type=_positive, default=1, help="GPUs of each")
    parser.add_argument("--deadline", type=_hours, metavar="HOURS", help="the cheapest nodes that are through by then")
    parser.add_argument("--assume", action="append", default=[], metavar="NAME=VALUE", help="change an assumption")
    parser.add_argument("--measure", type=_positive, metavar="N", help="measure on N articles of source.uri, a folder")
    parser.add_argument("--save", action="store_true", help="keep the rates in use in rates.json, for plans to come")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
