"""MLflow and Weights & Biases beside TensorBoard: the lines of metrics.jsonl, one run per train product, also across
restarts.

Each finds its server as it always does (MLFLOW_TRACKING_URI; WANDB_MODE, WANDB_API_KEY, WANDB_BASE_URL); a worker gets
these from the cluster's environment, or from Ray's runtime_env. Both packages are the extra `trackers`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from biomedclip_ray.store.place import Place

log = logging.getLogger(__name__)

PROJECT = "biomedclip"
"""The experiment of MLflow, and the project of Weights & Biases."""

_MLFLOW_RUN = "mlflow_run.txt"


class Tracker(Protocol):
    name: str

    def line(self, values: dict[str, float]) -> None:
        """A line of metrics.jsonl."""

    def close(self) -> None:
        """No more lines; what was sent is kept."""


def missing(names: tuple[str, ...]) -> list[str]:
    """Trackers whose package is not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def open_trackers(names: tuple[str, ...], product: Place, facts: dict[str, Any]) -> list[Tracker]:
    """The configured trackers, their run begun or gone on with.

    Args:
        product: of the training; its name is the run's.
        facts: what a run is told once: the config.
    """
    kinds: dict[str, Any] = {"mlflow": _MLflow, "wandb": _WandB}
    opened: list[Tracker] = []
    for name in names:
        with _surviving(name):
            opened.append(kinds[name](product, facts))
    return opened


def send(trackers: list[Tracker], values: dict[str, float]) -> None:
    """Give a line to each tracker; one that fails is taken off the list."""
    for tracker in list(trackers):
        trackers.remove(tracker)
        with _surviving(tracker.name):
            tracker.line(values)
            trackers.append(tracker)


def close(trackers: list[Tracker]) -> None:
    """End each tracker's run."""
    for tracker in trackers:
        with _surviving(tracker.name):
            tracker.close()


@contextmanager
def _surviving(name: str) -> Iterator[None]:
    """The outage of a tracker's server must not cost the run."""
    try:
        yield
    except Exception as error:  # what two libraries and their transports raise has nothing in common
        log.warning(
            "train: %s takes no more lines (%s: %s); the run goes on without it, metrics.jsonl has them all",
            *(name, type(error).__name__, str(error).partition("\n")[0]),
        )


class _MLflow:
    name = "mlflow"

    def __init__(self, product: Place, facts: dict[str, Any]) -> None:
        # its own patience, 8 tries of 120 s, would keep all workers waiting
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        self.client = MlflowClient()
        if product.exists(_MLFLOW_RUN):
            self.run = product.read(_MLFLOW_RUN).decode()
            return
        experiment = self.client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
        self.run = self.client.create_run(number, run_name=_name(product)).info.run_id
        for key, value in facts.items():
            self.client.log_param(self.run, key, value)
        product.write(_MLFLOW_RUN, self.run.encode())

    def line(self, values: dict[str, float]) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now, step = get_current_time_millis(), int(values["step"])
        metrics = [Metric(name, value, now, step) for name, value in values.items() if name != "step"]
        self.client.log_batch(self.run, metrics=metrics)

    def close(self) -> None:
        self.client.set_terminated(self.run)


class _WandB:
    name = "wandb"

    def __init__(self, product: Place, facts: dict[str, Any]) -> None:
        import wandb

        self.run = wandb.init(
            project=PROJECT, id=_name(product), name=_name(product), resume="allow", config=facts, dir=product.local
        )

    def line(self, values: dict[str, float]) -> None:
        self.run.log({name: value for name, value in values.items() if name != "step"}, step=int(values["step"]))

    def close(self) -> None:
        self.run.finish()


def _name(product: Place) -> str:
    return product.uri.rstrip("/").rsplit("/", 1)[-1]
