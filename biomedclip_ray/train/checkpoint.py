"""Checkpoints: weights, optimiser and the one integer, written aside and uploaded while training goes on.

Weights are safetensors under open_clip's own names, whatever was compiled or wrapped; the optimiser's moments a torch file
that loads without unpickling code. Which checkpoint counts is Ray Train's snapshot file, written after the upload: a
half-written folder is never resumed from. Feed and workers read the same snapshot, so both begin at the same step.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import Checkpoint, Result

from biomedclip_ray.storage import Place

if TYPE_CHECKING:
    from biomedclip_ray.train.step import Learner

RUN = "checkpoints"
"""The folder in the product, and the name of Ray Train's run."""

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.pt"
STATE = "state.json"


def folder_name(steps_done: int) -> str:
    return f"step-{steps_done:08d}"


def step_of(name: str) -> int:
    """The steps done that a checkpoint's folder name or path tells."""
    return int(Path(name).name.removeprefix("step-"))


def save(folder: Path, learner: Learner, state: dict[str, Any]) -> None:
    """Write a checkpoint into a local folder; `state` is JSON with at least `step`, the optimiser steps done."""
    import torch
    from safetensors.torch import save_file

    from biomedclip_ray.clip.bundle import clean_names

    weights = clean_names(learner.model.state_dict())
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}, folder / WEIGHTS)
    torch.save(learner.optimizer.state_dict(), folder / OPTIMIZER)
    (folder / STATE).write_text(json.dumps(state))


def restore(checkpoint: Checkpoint, learner: Learner) -> dict[str, Any]:
    """Load a checkpoint into a learner; returns what `save` was given as `state`.

    Raises:
        RuntimeError: weights missing or unexpected (named).
    """
    import torch
    from safetensors.torch import load_file

    with checkpoint.as_directory() as name:
        folder = Path(name)
        learner.model.load_state_dict(load_file(folder / WEIGHTS))
        learner.optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu"))
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
    return state


def newest(product: Place) -> Checkpoint | None:
    """The checkpoint that a run in this product goes on from, or None before the first."""
    result = _result(product)
    return result.checkpoint if result else None


def best(product: Place, score: str) -> Checkpoint | None:
    """The kept checkpoint of the highest score, the later one of equals; None where none was scored."""
    result = _result(product)
    scored = [(m[score], step_of(c.path), c) for c, m in result.best_checkpoints or () if score in m] if result else []
    return max(scored, key=lambda one: one[:2])[2] if scored else None


def _result(product: Place) -> Result | None:
    if not product.at(RUN).exists(_SNAPSHOT):
        return None
    logging.getLogger("ray.train.v2._internal.execution.checkpoint").setLevel(
        logging.WARNING
    )  # warns of resuming: we do
    return Result.from_path(product.at(RUN).uri)


def steps_done(product: Place) -> int:
    """Optimiser steps in the newest checkpoint; 0 without one."""
    checkpoint = newest(product)
    return 0 if checkpoint is None else step_of(checkpoint.path)


_SNAPSHOT = "checkpoint_manager_snapshot.json"
