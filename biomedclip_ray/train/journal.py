"""Who trained when on what: a file per attempt, and on request the positions that each step of each rank used.

An attempt is one start of the worker group; a run that nobody disturbs has one. Files are small and never appended to,
so they work on any storage and a killed worker leaves only whole ones.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import torch.distributed as dist

from biomedclip_ray.store.place import Place

log = logging.getLogger(__name__)

ATTEMPTS = "attempts"
PAIRS = "pairs"


def begin(product: Place, rank: int, facts: dict[str, Any]) -> int:
    """Number this attempt from 1, record and log its facts; every rank gets the number."""
    number = [0]
    if rank == 0:
        number[0] = 1 + len(product.list(ATTEMPTS))
        record = {"attempt": number[0], "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts}
        while not product.at(ATTEMPTS).create(f"{number[0]:04d}.json", json.dumps(record).encode()):
            number[0] += 1
            record["attempt"] = number[0]
        log.info(
            "train: attempt %d begins at step %d of %d (epoch %.2f, rate %.3g, logit scale %.4g, %s without a loss "
            "scaler, seed %d, "
            "%d workers)",
            *(number[0], facts["first_step"], facts["steps"], facts["epoch"], facts["lr"], facts["logit_scale"]),
            *(facts["precision"], facts["seed"], len(facts["workers"])),
        )
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(number, src=0)
    return number[0]


def attempts(product: Place) -> list[dict[str, Any]]:
    """The facts of every attempt so far, in order."""
    return [json.loads(product.read(name)) for name in product.list(ATTEMPTS)]


class PairsLog:
    """pairs/*.jsonl: {step, attempt, rank, positions} for each step of a rank."""

    def __init__(self, product: Place, attempt: int, rank: int) -> None:
        self.place, self.attempt, self.rank = product.at(PAIRS), attempt, rank
        self.lines: list[str] = []

    def add(self, step: int, positions: list[int], flush: bool) -> None:
        """Record a step, counted from 1; `flush` writes what has gathered as one file."""
        record = {"step": step, "attempt": self.attempt, "rank": self.rank, "positions": positions}
        self.lines.append(json.dumps(record) + "\n")
        if flush:
            name = f"attempt-{self.attempt:04d}-rank-{self.rank:04d}-step-{step:08d}.jsonl"
            self.place.write(name, "".join(self.lines).encode())
            self.lines = []


def trained_pairs(product: Place) -> dict[tuple[int, int], list[int]]:
    """(attempt, step) -> the positions of its global batch, sorted; read from pairs/*.jsonl."""
    found: dict[tuple[int, int], list[int]] = {}
    for name in product.list(PAIRS):
        for line in product.read(name).decode().splitlines():
            record = json.loads(line)
            found.setdefault((record["attempt"], record["step"]), []).extend(record["positions"])
    return {key: sorted(positions) for key, positions in sorted(found.items())}
