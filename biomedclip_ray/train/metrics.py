"""What a run measures: metrics.jsonl, TensorBoard events and Ray's own metrics (Prometheus), from rank 0; progress
lines, printed by the driver.

A line of metrics.jsonl: step (optimiser steps done), epoch, loss, chance_loss (of a model that cannot tell the pairs of
a batch apart), lr, logit_scale, grad_norm, skipped (steps whose gradient was not finite), and the throughput since the
line before: pairs_per_s, step_seconds, where they went as shares (data_wait, forward, loss, backward, optimizer),
tflop_per_s of this worker, mfu where the device's peak is known, memory_bytes at most so far, seconds of training
altogether. The file is written whole each time, as object stores want it; after a restart the lines beyond the
checkpoint are dropped and written again.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ray.util.metrics import Gauge

from biomedclip_ray.run.progress import rate_and_eta
from biomedclip_ray.run.telemetry import SET_S, tell
from biomedclip_ray.store.background import Background
from biomedclip_ray.store.place import Place
from biomedclip_ray.train.checkpoint import RUN, step_of
from biomedclip_ray.train.trackers import Tracker, close, send

log = logging.getLogger(__name__)

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
_FLUSH_S = {True: 2.0, False: 30.0}  # local disk, object store
_LINE_S = 15.0
_STILL_S = 60.0
_STUCK_SHARE = 0.97
_STUCK_STEPS = 50


class MetricsLog:
    """Rank 0's writer. `line` costs nothing but memory; `flush` writes."""

    def __init__(self, product: Place, steps_done: int, trackers: Iterable[Tracker] = ()) -> None:
        from tensorboardX import SummaryWriter

        self.product, self.trackers = product, list(trackers)
        self.lines = [line for line in read(product) if line["step"] <= steps_done]
        self._scratch = None if product.local else tempfile.TemporaryDirectory(prefix="tensorboard-")
        self._events = Path(self._scratch.name) if self._scratch else product.at(TENSORBOARD).local
        last = self.lines[-1:]  # shown again: a kill loses what stands in the writer's queue, up to ten values
        begin = int(last[0]["step"]) if last else steps_done + 1
        self._writer = SummaryWriter(str(self._events), purge_step=begin, filename_suffix=f".from-{steps_done}")
        for values in last:
            self._show(values)
        self._gauges: dict[str, Gauge] = {}
        self._flushed = time.monotonic()
        self._closed = threading.Event()
        threading.Thread(target=self._tell_again, name="gauges", daemon=True).start()

    def line(self, values: dict[str, float]) -> None:
        self.lines.append(values)
        self._show(values)
        self._tell(values)
        send(self.trackers, values)
        if time.monotonic() - self._flushed > _FLUSH_S[self.product.local is not None]:
            try:
                self.flush()
            except OSError as error:  # the lines stay in memory, and the flush before a checkpoint must not fail
                self._flushed = time.monotonic()
                log.warning("train: metrics could not be written (%s); they are with the next ones", error)

    def _tell(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"biomedclip_train_{name}", f"{name} of the newest line of {FILE}")
            self._gauges[name].set(value)

    def _tell_again(self) -> None:
        """Ray exports a gauge for some 20 s after it was set, and lines may be further apart."""
        while not self._closed.wait(SET_S):
            if self.lines:
                self._tell(self.lines[-1])

    def _show(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if name != "step":
                self._writer.add_scalar(f"train/{name}", value, int(values["step"]))

    def flush(self) -> None:
        self._writer.flush()
        self.product.write(FILE, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        if self._scratch:
            self.product.at(TENSORBOARD).upload(Path(self._scratch.name))
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._closed.set()
        self.flush()
        self._writer.close()
        close(self.trackers)
        if self._scratch:
            self._scratch.cleanup()


def read(product: Place) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none where there is no file yet."""
    if not product.exists(FILE):
        return []
    return [json.loads(line) for line in product.read(FILE).decode().splitlines()]


def is_stuck(lines: list[dict[str, Any]]) -> bool:
    """True where the loss never left the chance loss although there were steps enough to, after the warm-up: from the
    step of the highest rate on.
    """
    if not lines:
        return False
    warm: int = max(lines, key=lambda line: line["lr"])["step"]
    late = [line["loss"] for line in lines if line["step"] >= warm + _STUCK_STEPS]
    return bool(late) and min(late) > _STUCK_SHARE * lines[-1]["chance_loss"]


class Watch(Background):
    """Prints a line of progress now and then while a run writes its metrics: `with Watch(place, steps, done): ...`."""

    def __init__(
        self,
        product: Place,
        steps: int,
        done: int,
        why_still: Callable[[], str],
        line_s: float = _LINE_S,
        still_s: float = _STILL_S,
    ) -> None:
        """`why_still`: asked after each `still_s` without a step; what it says, if anything, is printed."""
        self.product, self.steps, self.done, self.line_s = product, steps, done, line_s
        self.why_still, self.still_s = why_still, still_s
        super().__init__("progress train")

    def watch(self) -> None:
        warned, saved = 0, 0
        last, moved = self.done, time.monotonic()
        tell("train_steps", self.steps)
        tell("checkpoint_timestamp_seconds", time.time())  # until there is one, its age is training's
        if self.done:
            log.info("train: goes on at step %d of %d", self.done, self.steps)
            tell("checkpoint_step", self.done)
        while not self.stopped.wait(self.line_s):
            lines = [line for line in read(self.product) if line["step"] > self.done]
            if not lines or lines[-1]["step"] == last:
                if time.monotonic() - moved >= self.still_s:
                    moved = time.monotonic()
                    if why := self.why_still():
                        log.warning("no step for %.0f s: %s", self.still_s, why)
                continue
            moved = time.monotonic()
            now = lines[-1]
            last = now["step"]
            newest = max(
                map(step_of, (name for name in self.product.at(RUN).folders() if name.startswith("step-"))), default=0
            )
            if newest > saved:
                saved = newest
                tell("checkpoint_step", newest)
                tell("checkpoint_timestamp_seconds", time.time())
            spent = now["seconds"] - lines[0]["seconds"]
            throughput = rate_and_eta(now["step"] - lines[0]["step"], self.steps - lines[0]["step"], spent, "step")
            log.info(
                "train: step %d of %d, loss %.3f (chance %.3f), %.0f pairs/s, %.0f%% waiting for data, %s",
                *(now["step"], self.steps, now["loss"], now["chance_loss"], now["pairs_per_s"]),
                *(100 * now["data_wait_share"], throughput),
            )
            if is_stuck(lines) and now["step"] >= 2 * warned:
                warned = now["step"]
                log.warning(
                    "train: after %d steps the loss is still the chance loss (%.3f): check that captions belong to "
                    "their "
                    "images, then train.lr and train.warmup_steps",
                    *(now["step"], now["chance_loss"]),
                )
