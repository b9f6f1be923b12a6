"""The record of a run: which stages ran, were resumed or skipped, what came in and why it was dropped; root/run.json.

The same file keeps the inventory that `source.inventory: newest` was resolved to for each source, so that the same
command goes on with that date however often it is killed; `--sync` moves on to a newer one. Under `known` it keeps
every inventory that was ever worked from: the source forgets them after 30 days, and what was made of one is still to
be exported and served.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from biomedclip_ray.config import STAGES, Config, ConfigError
from biomedclip_ray.run.meter import NOTHING, Meter
from biomedclip_ray.run.preflight import Step
from biomedclip_ray.run.runs import whole
from biomedclip_ray.run.stage import Stage
from biomedclip_ray.run.telemetry import forget, tell
from biomedclip_ray.store.place import Place, StorageError
from biomedclip_ray.store.product import Product

log = logging.getLogger(__name__)

RUN_FILE = "run.json"


def load_run(root: str) -> dict[str, Any]:
    """root/run.json, or an empty record where nothing ran yet. Raises StorageError where the root cannot be reached."""
    try:
        return whole(Place(root), RUN_FILE, ("inventories", "known", "stages"))
    except FileNotFoundError:
        return {"inventories": {}, "known": {}, "stages": []}
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"root={root} cannot be read: {error}; give a place that this user may use") from error


def source_name(config: Config) -> str:
    """The source's URI, one for all ways to write it."""
    uri = config.source.uri
    if "://" in uri and not uri.startswith("file://"):
        return uri.rstrip("/")
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


@dataclass(frozen=True)
class Inventory:
    """The list of articles that a run works from: its date, the md5 of its manifest, and the keys of its CSV files."""

    date: str
    checksum: str
    files: tuple[str, ...]


class Run:
    """One pass over the stages `first`..`last`; each other stage must be finished already, or is left alone.

    With `dry` nothing is started: `stage` only says what would happen.
    """

    def __init__(self, config: Config, inventory: Inventory | None, first: str, last: str, dry: bool = False) -> None:
        self.config = config
        self.inventory = inventory  # None where PubMed Central is not read
        self.chosen = STAGES[STAGES.index(first) : STAGES.index(last) + 1]
        self.dry = dry
        self.record = load_run(config.root)
        self.stages: list[dict[str, Any]] = []
        self.unfinished: list[Step] = []
        """In a dry pass: the chosen stages that have work to do, with what they read."""
        self.missing: list[tuple[str, Product]] = []
        self.working_on = ""
        self.meter: Meter | None = None
        """Counts what the stages take; None where nothing runs."""
        self.started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def wants(self, name: str) -> bool:
        return name in self.chosen

    def begin(self) -> None:
        """Settle on the inventory: killed before the first stage ends, the same command goes on with the same date."""
        self._write()

    def stage(self, stage: Stage, *inputs: Any) -> Product:
        """Run one stage, or find it finished; a stage outside the range is left alone."""
        if self.dry:
            product = stage.plan(self.config, *inputs)
            if self._foresee(product) in ("run", "resume"):
                self.unfinished.append((stage, inputs))
            self.build_on(product.stage, *inputs)
            return product
        if not self.wants(stage.name):
            return stage.plan(self.config, *inputs)
        uri = stage.plan(self.config, *inputs).uri
        log.info("%s: %s", stage.name, uri)
        with self.at_work(stage.name, uri):
            outcome = stage.run(self.config, *inputs)
        self.note(stage.name, outcome.state, outcome.product, outcome.seconds)
        return outcome.product

    @contextmanager
    def at_work(self, name: str, product: str | None = None) -> Iterator[None]:
        """What happens meanwhile is this stage's: its name in errors, its seconds and nodes, its numbers for
        Prometheus.
        """
        self.working_on = name
        tell("stage_running", 1, stage=name)
        if self.meter is not None:
            self.meter.turn(name, product)
        try:
            yield
        finally:
            forget(stage=name)
            tell("stage_running", 0, stage=name)  # a driver that is gone leaves 1 behind
            if self.meter is not None:
                self.meter.turn(*NOTHING)

    def build_on(self, name: str, *inputs: Any) -> None:
        """In a dry pass: notes the products that a chosen stage reads and that will not be there."""
        for source in inputs:
            if (
                isinstance(source, Product)
                and self.wants(name)
                and not self.wants(source.stage)
                and not source.finished
            ):
                self.missing.append((name, source))

    def check_range(self) -> None:
        """After a dry pass: raises ConfigError where a stage builds on one that is neither finished nor
        in the range.
        """
        for name, source in self.missing:
            raise ConfigError(
                f"{source.stage} is not finished for this configuration ({source.uri}), and {name} builds on it; "
                f"run without --only and --from, or with --from {source.stage}"
            )

    def note(self, name: str, state: str, product: Product | None, seconds: float) -> None:
        """Write a stage into root/run.json: seconds, node-seconds and money over all runs that worked on its product,
        and in this one.
        """
        manifest = product.manifest if product is not None else {}
        for count in manifest.get("counts", []):
            for outcome, number in {"kept": count["kept"], **count["dropped"]}.items():
                tell("units", number, stage=name, unit=count["unit"], outcome=outcome)
        uri = product.uri if product is not None else None
        self.stages.append(
            {
                "name": name,
                "state": state,
                "product": uri,
                **({"seconds": round(seconds, 2)} if self.meter is None else self.meter.cost(name, uri)),
                "peak_rss": manifest.get("peak_rss", 0),
                "counts": manifest.get("counts", []),
                **({"recall@10": manifest["recall@10"]} if "recall@10" in manifest else {}),
            }
        )
        self._write()

    def _write(self) -> None:
        kept = [stage for stage in self.record["stages"] if stage["name"] not in {s["name"] for s in self.stages}]
        order = {stage: number for number, stage in enumerate(STAGES)}
        inventories, known = dict(self.record["inventories"]), dict(self.record["known"])
        if self.inventory is not None:
            source = source_name(self.config)
            known[source] = known.get(source, {}) | {self.inventory.date: self.inventory.__dict__}
            if self.config.source.inventory == "newest":
                inventories[source] = self.inventory.__dict__
        record = {
            "run": self.meter.record.id if self.meter is not None else None,
            "started": self.started,
            "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "inventory": self.inventory.date if self.inventory is not None else None,
            "inventories": inventories,
            "known": known,
            "stages": sorted([*kept, *self.stages], key=lambda stage: order[stage["name"]]),
            "config": self.config.model_dump(mode="json"),
        }
        Place(self.config.root).write(RUN_FILE, json.dumps(record, indent=1, ensure_ascii=False).encode())

    def _foresee(self, product: Product) -> str:
        if product.finished:
            state, why = "skip", f"finished {product.manifest['created']}"
        elif not self.wants(product.stage):
            state, why = "leave", "not asked for"
        elif parts := len(product.done_parts()):
            state, why = "resume", f"{parts} parts are done"
        elif product.begun:
            state, why = "resume", "begun, not finished"
        else:
            state, why = "run", "no product of this configuration and these inputs yet"
        self.stages.append({"name": product.stage, "state": state, "why": why, "product": product.uri})
        return state

    def show(self, console: Console) -> None:
        """Print what happened, or would happen, as a table."""
        if self.dry:
            title = f"Dry run, nothing was started; products below {Place(self.config.root).uri}"
            table = Table("stage", "would", "why", "product", title=title, box=SIMPLE_HEAD)
            for stage in self.stages:
                table.add_row(stage["name"], stage["state"], stage["why"], stage["product"].rpartition("/")[2])
        else:
            table = _summary(self.stages, self.config.root)
        console.print(table)


def _summary(stages: list[dict[str, Any]], root: str) -> Table:
    table = Table(title=f"Run in {Place(root).uri} (a product is a folder STAGE/PRODUCT there)", box=SIMPLE_HEAD)
    for name in ("stage", "state", "unit"):
        table.add_column(name, no_wrap=True)
    for name in ("in", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("dropped", min_width=20, overflow="fold")
    for name in ("seconds", "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("product", no_wrap=True)
    for stage in stages:
        fingerprint = (stage["product"] or "").rpartition("/")[2]
        facts = (f"{stage['seconds']:.1f}", f"{stage['peak_rss'] / 1e6:,.0f}" if stage["peak_rss"] else "", fingerprint)
        for number, count in enumerate(stage["counts"] or [None]):
            head = (stage["name"], stage["state"]) if number == 0 else ("", "")
            tail = facts if number == 0 else ("", "", "")
            if count is None:
                table.add_row(*head, "", "", "", "", *tail)
                continue
            dropped = "\n".join(f"{reason} {n:,}" for reason, n in count["dropped"].items())
            table.add_row(*head, count["unit"], f"{count['in']:,}", f"{count['kept']:,}", dropped, *tail)
    return table


def list_products(root: str, console: Console, served: dict[str, str]) -> None:
    """Print every product below a root with its size and what uses it, then what a server is given: for each product
    of a stage in `served` the URI of the file or folder that stands there.
    """
    place = Place(root)
    table = Table("product", "made", "rows", "MB", "used by", title=f"Products in {place.uri}", box=SIMPLE_HEAD)
    found = sorted(name for name in place.list() if name.endswith("/_MANIFEST.json") and name.count("/") == 2)
    manifests = {name.removesuffix("/_MANIFEST.json"): json.loads(place.read(name)) for name in found}
    for name, manifest in manifests.items():
        users = [
            user
            for user, other in manifests.items()
            if any(f"{source['stage']}/{source['fingerprint']}" == name for source in other["inputs"])
        ]
        size = sum(place.list(name).values()) / 1e6
        rows = sum(file["rows"] or 0 for file in manifest["files"] if file["name"].startswith("data/"))
        table.add_row(name, manifest["created"], f"{rows:,}", f"{size:.1f}", ", ".join(users) or "nothing")
    console.print(table)
    for name in manifests:
        if (inside := served.get(name.partition("/")[0])) is not None:
            console.print(place.at(f"{name}/{inside}").uri, soft_wrap=True, highlight=False, markup=False)
