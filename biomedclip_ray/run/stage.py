"""A stage: what decides its product's rows, the work that makes them, and what it needs. Planned, skipped, run and
finished in this one place, whatever the stage does.

A stage's file defines one `Stage`; `workflows/biomedclip.py` says in which order they run and what each one reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from biomedclip_ray.config import Config, PartResources
from biomedclip_ray.run.parts import Runner, Worker, on_ray
from biomedclip_ray.run.tasks import HereTasks, RayTasks, Tasks
from biomedclip_ray.store.attempt import Attempt, attempt
from biomedclip_ray.store.ledger import Count
from biomedclip_ray.store.product import Product


@dataclass(frozen=True)
class Made:
    """How the work on a product ended."""

    facts: dict[str, Any] = field(default_factory=dict)
    """What the manifest says besides what every manifest says."""
    transient_limit: float = 0.0
    """Share of the units that may be lost to network or disk."""
    counts: tuple[Count, ...] = ()
    """The balance of a product that is not made of parts."""


@dataclass(frozen=True)
class Outcome:
    """What became of a stage in a run."""

    product: Product
    state: Literal["ran", "resumed", "skipped"]
    seconds: float = 0.0


@dataclass(frozen=True)
class RunParts:
    """Who does the work of an attempt: `run_parts(worker, resources, args)` over its missing parts, `tasks` for the
    rest.
    """

    attempt: Attempt
    runner: Runner

    def __call__(self, worker: Worker, resources: PartResources, args: tuple[Any, ...] = ()) -> None:
        self.runner(self.attempt, worker, resources, args)

    @property
    def tasks(self) -> Tasks:
        return RayTasks() if self.runner is on_ray else HereTasks()


def _products(config: Config, *inputs: Any) -> list[Product]:
    return [source for source in inputs if isinstance(source, Product)]


def _nothing(*_: Any) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Stage:
    """One step of the workflow, from some products to one.

    Each function gets the configuration and then what the stage reads: products, or what stands before the first of
    them.
    """

    name: str
    version: int
    """Raised with every change that alters the rows."""
    content: Callable[..., dict[str, Any]]
    """(config, *inputs) -> what decides the rows besides the products that are read; part of the fingerprint."""
    work: Callable[..., Made]
    """(attempt, run_parts, config, *inputs) -> Made. `run_parts(worker, resources, args)` runs the worker over the
    attempt's missing parts, wherever the caller wants that done."""
    inputs: Callable[..., Sequence[Product]] = _products
    """(config, *inputs) -> the products that the rows depend on."""
    check: Callable[..., Iterable[str]] = _nothing
    """(config, *inputs) -> what is wrong, one line each with the key and the fix; asked before anything starts."""
    fit: Callable[..., Iterable[str]] = _nothing
    """(config, capacity, *inputs) -> what the nodes that may come cannot give, likewise; needs no cluster."""
    try_out: Callable[..., Iterable[str]] = _nothing
    """(config, *inputs) -> what is wrong, likewise; asked on the cluster, for what can only be known by trying."""

    def plan(self, config: Config, *inputs: Any) -> Product:
        """The product that the stage would make. Raises ConfigError where something that decides it cannot be read."""
        content = self.content(config, *inputs)
        return Product.plan(config.root, self.name, self.version, content, self.inputs(config, *inputs))

    def run(self, config: Config, *inputs: Any, runner: Runner = on_ray) -> Outcome:
        """Make the product, go on with one that was begun, or find it finished.

        Args:
            runner: who runs the parts: Ray Data, or a plain loop in this process.

        Raises:
            HeldError: another driver works on it.
            UnfinishedError: too many units were lost to network or disk.
        """
        product = self.plan(config, *inputs)
        if product.finished:
            return Outcome(product, "skipped")
        started = time.monotonic()
        with attempt(product) as current:
            made = self.work(current, RunParts(current, runner), config, *inputs)
            if current.parts is None:
                current.finish(made.counts, made.facts)
            else:
                current.finish_parts(made.transient_limit, made.facts)
        return Outcome(product, current.state, time.monotonic() - started)
