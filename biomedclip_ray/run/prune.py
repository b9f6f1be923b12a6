"""Remove the products of a root that nothing refers to any more: old configurations, old inventories, interrupted
attempts.

Kept are the products of the last run (root/run.json), those that the given configuration would use, everything these
were made from, and the parent of each, which is the way back after a sync.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from biomedclip_ray.config import STAGES
from biomedclip_ray.run.record import load_run
from biomedclip_ray.store.lease import HeldError, alive
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import FINGERPRINT, MANIFEST


@dataclass(frozen=True)
class Unused:
    """A product that nothing refers to."""

    name: str
    """`stage/fingerprint`."""
    made: str
    """When it was finished; "" where it never was."""
    bytes: int


def prune(root: str, planned: Iterable[str], yes: bool | None, console: Console) -> None:
    """Show what nothing refers to; remove it with `yes`, or after a yes at the terminal.

    Args:
        yes: None: only show.
        planned: URIs of the products that the configuration at hand would use.
    """
    unused = find_unused(root, planned)
    if not unused:
        console.print(f"Every product in {Place(root).uri} is used.", soft_wrap=True)
        return
    table = Table("product", "made", "MB", title=f"Used by nothing in {Place(root).uri}", box=SIMPLE_HEAD)
    for product in unused:
        table.add_row(product.name, product.made or "unfinished", f"{product.bytes / 1e6:.1f}")
    console.print(table)
    if yes is None:
        return
    if not yes and not sys.stdin.isatty():
        console.print("Nothing was removed; add --yes to remove them.")
    elif yes or console.input("Remove them? [y/N] ").strip().lower() in ("y", "yes"):
        remove(root, unused)
        console.print(f"Removed {len(unused)} products, {sum(p.bytes for p in unused) / 1e6:.1f} MB.")


def find_unused(root: str, planned: Iterable[str] = ()) -> list[Unused]:
    """The products below `root` that neither run.json nor `planned` (URIs) leads to.

    Raises:
        HeldError: a driver is at work in this root, whose inputs nobody can tell.
    """
    place = Place(root)
    # what has another name is somebody's own: a root may lie beside a folder "train" with images
    names = [
        f"{stage}/{folder}" for stage in STAGES for folder in place.at(stage).folders() if FINGERPRINT.fullmatch(folder)
    ]
    if busy := alive(place.at(name) for name in names):
        raise HeldError(f"{busy[0]}; nothing is removed while a driver works in this root: wait for it, or stop it")
    manifests = {name: json.loads(place.at(name).read(MANIFEST)) for name in names if place.at(name).exists(MANIFEST)}
    last_run = [stage["product"] for stage in load_run(root)["stages"] if stage["product"]]
    used = {"/".join(uri.rsplit("/", 2)[-2:]) for uri in [*last_run, *planned]}
    waiting = list(used)
    while waiting:
        found = {_name(item) for item in manifests.get(waiting.pop(), {}).get("inputs", [])} - used
        used |= found
        waiting += found
    used |= {_name(manifests[name]["parent"]) for name in used if "parent" in manifests.get(name, {})}
    return [
        Unused(name, manifests.get(name, {}).get("created", ""), sum(place.at(name).list().values()))
        for name in names
        if name not in used
    ]


def remove(root: str, products: Iterable[Unused]) -> None:
    """Delete products, the manifest first: one that is half gone must not look finished."""
    for product in products:
        place = Place(root).at(product.name)
        place.delete(MANIFEST)
        place.delete_all()


def _name(item: dict[str, Any]) -> str:
    return f"{item['stage']}/{item['fingerprint']}"
