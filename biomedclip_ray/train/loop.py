"""What each training worker runs: restore, then step after step until the schedule ends.

The worker never counts batches by itself. Each micro-batch carries its positions, and a block that is not the next one
of the sequence stops the run: exactly once is checked on every step, not hoped for.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device

from biomedclip_ray.clip.bundle import load_bundle
from biomedclip_ray.clip.loss import LOSSES
from biomedclip_ray.config import Train
from biomedclip_ray.run.memory import peak_rss
from biomedclip_ray.store.place import Place
from biomedclip_ray.train import checkpoint, journal
from biomedclip_ray.train.divergence import Divergence
from biomedclip_ray.train.metrics import MetricsLog
from biomedclip_ray.train.order import deal
from biomedclip_ray.train.step import Block, Learner, StepResult, learning_rate
from biomedclip_ray.train.throughput import Throughput
from biomedclip_ray.train.trackers import open_trackers

log = logging.getLogger(__name__)

_ASK_S = 1.0


@dataclass(frozen=True)
class Job:
    """What a worker must know.

    Attributes:
        product: URI of the train product.
        validates: whether checkpoints are measured on the validation split.
        start: URI of the bundle that training starts from.
        recipe: the train section of the config.
        steps: optimiser steps of the whole run.
        rows: pairs of the train split.
    """

    product: str
    start: str
    recipe: Train
    steps: int
    rows: int
    validates: bool


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Run a `Job`; returns {diverged, peak_rss} of this worker; `diverged` says what and what else
    helps, or is None.
    """
    _quiet()
    job: Job = config["job"]
    recipe, place = job.recipe, Place(job.product)
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    device = get_device()
    if recipe.resources.threads:
        torch.set_num_threads(recipe.resources.threads)
    bundle = load_bundle(job.start)
    learner = Learner(
        bundle.model,
        recipe,
        job.steps,
        bundle.info["preprocess_cfg"]["mean"],
        bundle.info["preprocess_cfg"]["std"],
        device,
    )
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "best": math.inf}
    restored = ray.train.get_checkpoint()
    if restored is not None:
        state = checkpoint.restore(restored, learner)
    first = int(state["step"])
    attempt = journal.begin(place, rank, _describe(job, first, world, learner))
    feed = _Feed(recipe, first, rank, world, device)
    records = journal.PairsLog(place, attempt, rank) if recipe.log_pairs else None
    metrics = None
    if rank == 0:
        facts = {**recipe.model_dump(mode="json", exclude={"resources"}), "rows": job.rows, "steps": job.steps}
        metrics = MetricsLog(place, first, open_trackers(recipe.trackers, place, facts))
    clock = Throughput(learner, float(state["seconds"]))
    trend = Divergence(
        LOSSES[recipe.loss].chance(recipe.batch), recipe.warmup_steps, recipe.divergence_steps, state["best"]
    )
    notice = _Notice(first)
    diverged, warned = None, False
    for number in range(first, job.steps):
        with clock.waiting():
            blocks, positions = feed.take()
        result = learner.step(number, blocks, feed.sizes(number))
        done = number + 1
        last = done == job.steps
        saves = last or done % recipe.checkpoint_steps == 0
        logs = last or number == first or done % recipe.log_steps == 0
        if not warned and notice.given(done):
            saves = warned = True  # a node is about to go: what it has learned is kept just in time
        if records is not None:
            records.add(done, positions, flush=logs or saves)  # nobody tells those before a checkpoint again
        if not (logs or saves):
            continue
        loss = float(result.loss)  # waits for the device
        skipped = int(result.skipped)
        if skipped > allowed(recipe, done - first) or (saves and not learner.is_finite()):
            diverged = (
                f"by step {done} loss, gradient or weights are not finite",
                "set train.precision=fp32, or train.on_nan=skip where a few steps do it",
            )
            break
        trend.read(done, loss)
        if trend.lost(done):
            diverged = (
                f"the loss is {loss:.3f} at step {done} and has been above {trend.line:.3f} since step {trend.since} "
                "(its best was "
                f"{trend.best:.3f}, the chance loss is {trend.chance:.3f})",
                "or set train.divergence_steps=null to let it go on",
            )
            break
        saves = last or (saves and trend.since is None)
        throughput = clock.read(done)
        if metrics is not None and logs and math.isfinite(loss):
            metrics.line(_line(done, job, result, loss, throughput))
        if saves:
            if metrics is not None:
                metrics.flush()  # lines up to a checkpoint must not be lost: nobody writes them again
            state = {"step": done, "seconds": throughput["seconds"], "seed": recipe.seed, "best": trend.best}
            _save(learner, state, rank, loss, job)
    if metrics is not None:
        metrics.close()
    return {"diverged": diverged, "peak_rss": peak_rss()}


class _Feed:
    """This worker's micro-batchs, on its device, each checked to be the next one of the sequence."""

    def __init__(self, recipe: Train, first_step: int, rank: int, world: int, device: torch.device) -> None:
        self.rows = recipe.batch // recipe.micro_batches
        self.recipe, self.first_step, self.rank, self.world, self.device = recipe, first_step, rank, world, device
        shard = ray.train.get_dataset_shard("train")
        self._blocks: Iterator[dict[str, np.ndarray]] = iter(
            shard.iter_batches(
                batch_size=None, prefetch_batches=recipe.resources.prefetch_batches, batch_format="numpy"
            )
        )
        self.step = first_step

    def _shares(self, step: int) -> list[list[int]]:
        return deal(step - self.first_step, self.recipe.micro_batches, self.world)

    def sizes(self, step: int) -> list[int]:
        """Rows of each worker in a step."""
        return [len(blocks) * self.rows for blocks in self._shares(step)]

    def take(self) -> tuple[list[Block], list[int]]:
        """The next step's blocks of this worker, and the positions of their pairs."""
        blocks: list[Block] = []
        positions: list[int] = []
        for j in self._shares(self.step)[self.rank]:
            block = next(self._blocks)
            first = self.step * self.recipe.batch + j * self.rows
            if not np.array_equal(block["position"], np.arange(first, first + self.rows)):
                raise RuntimeError(
                    f"step {self.step}, block {j}: the feed gave positions {block['position'][:1]}.. for {first}.."
                )
            blocks.append(
                Block(
                    self._move(block["pixels"]),
                    self._move(block["tokens"]),
                    self._move(block["group"]),
                    first,
                    torch.tensor(block["length"]),
                )
            )
            positions += range(first, first + self.rows)
        self.step += 1
        return blocks, positions

    def _move(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor


class _Notice:
    """Whether a node is about to go, asked about once a second, or after each step where steps are slower: each time
    costs milliseconds, and every worker must ask, so rank 0 tells the others when.
    """

    def __init__(self, first: int) -> None:
        self.asked_at, self.asked, self.next = time.monotonic(), first, first + 1

    def given(self, done: int) -> bool:
        if done < self.next:
            return False
        now = time.monotonic()
        steps = int((done - self.asked) * _ASK_S / max(now - self.asked_at, 1e-3))
        self.next = done + broadcast_from_rank_zero(max(1, steps))
        self.asked_at, self.asked = now, done
        return ray.train.get_preemption_info() is not None


def _quiet() -> None:
    """open_clip and Ray Train tell each step of a start and each report; what matters stands in
    attempts/ and metrics.
    """
    for name in (None, "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("biomedclip_ray").setLevel(logging.INFO)


def allowed(recipe: Train, steps: int) -> int:
    """Steps without a number for a gradient that an attempt of so many steps may have."""
    return 0 if recipe.on_nan == "stop" else max(10, steps // 100)


def _line(done: int, job: Job, result: StepResult, loss: float, throughput: dict[str, float]) -> dict[str, float]:
    return {
        "step": done,
        "epoch": done * job.recipe.batch / job.rows,
        "loss": loss,
        "chance_loss": LOSSES[job.recipe.loss].chance(job.recipe.batch),
        "lr": result.lr,
        "logit_scale": float(result.logit_scale),
        "grad_norm": float(result.grad_norm),
        "skipped": int(result.skipped),
        **throughput,
    }


def _save(learner: Learner, state: dict[str, Any], rank: int, loss: float, job: Job) -> None:
    """Report a checkpoint: each worker with a part of it writes it aside, Ray uploads it while training goes on."""
    metrics = {"step": state["step"], "loss": loss}
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
    checkpoint.save(folder, learner, state, rank)
    if rank and not job.recipe.resources.shard:
        folder.rmdir()
        ray.train.report(metrics, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
        return
    if rank == 0:
        checkpoint.keep_snapshot(Place(job.product))
    ray.train.report(
        metrics,
        checkpoint=Checkpoint.from_directory(folder),
        checkpoint_dir_name=checkpoint.folder_name(state["step"]),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
        validation=job.validates,
    )


def _describe(job: Job, first: int, world: int, learner: Learner) -> dict[str, Any]:
    """What this attempt begins with; the same facts go to the log and into attempts/."""
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "device": str(learner.device)}
    everybody: list[Any] = [None] * world
    if world > 1:
        dist.all_gather_object(everybody, mine)
    else:
        everybody = [mine]
    return {
        "first_step": first + 1,
        "steps": job.steps,
        "epoch": first * job.recipe.batch / job.rows,
        "lr": learning_rate(first, job.recipe.lr, job.recipe.warmup_steps, job.steps),
        "logit_scale": float(learner.model.get_parameter("logit_scale").detach().exp()),
        "precision": job.recipe.precision,
        "seed": job.recipe.seed,
        "workers": everybody,
    }
