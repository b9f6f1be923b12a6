"""Checkpoints: weights, optimiser and the one integer, written aside and uploaded while training goes on.

Weights are safetensors under open_clip's own names, whatever was compiled or wrapped; the optimiser's moments a torch file
that loads without unpickling code. Which checkpoint counts is Ray Train's snapshot file, written after the upload: a
half-written folder is never resumed from. Feed and workers read the same snapshot, so both begin at the same step.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import Checkpoint, Result
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError

from biomedclip_ray.storage import Place

if TYPE_CHECKING:
    from biomedclip_ray.train.step import Learner

log = logging.getLogger(__name__)

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
    # it warns of resuming, which is what we do
    logging.getLogger("ray.train.v2._internal.execution.checkpoint").setLevel(logging.WARNING)
    for pause in _PAUSES_S:
        try:
            return Result.from_path(product.at(RUN).uri)
        except CheckpointManagerInitializationError:  # Ray writes the file in place: in that moment it is half there
            time.sleep(pause)
    return Result.from_path(product.at(RUN).uri)


def keep_snapshot(product: Place) -> None:
    """Put a whole snapshot aside, for the case that a kill comes while Ray writes the next one over it."""
    run = product.at(RUN)
    if run.exists(_SNAPSHOT) and _whole(data := run.read(_SNAPSHOT)):
        run.write(_ASIDE, data)


def mend(product: Place) -> None:
    """Before a run goes on: a snapshot that a kill cut off is replaced by the one before it.

    Ray removes an old checkpoint after the snapshot that does not name it is written, so what the one before names is still
    there. Where it is not, or there is none, the run begins anew.
    """
    run = product.at(RUN)
    if not run.exists(_SNAPSHOT) or _whole(run.read(_SNAPSHOT)):
        return
    if run.exists(_ASIDE):
        run.write(_SNAPSHOT, run.read(_ASIDE))
        try:
            _result(product)
        except CheckpointManagerInitializationError:
            run.delete(_SNAPSHOT)
    else:
        run.delete(_SNAPSHOT)
    done = steps_done(product)
    log.warning("train: the newest record of checkpoints was cut off by a kill; going on after step %d", done)


def _whole(snapshot: bytes) -> bool:
    try:
        json.loads(snapshot)
    except ValueError:
        return False
    return True


def steps_done(product: Place) -> int:
    """Optimiser steps in the newest checkpoint; 0 without one."""
    checkpoint = newest(product)
    return 0 if checkpoint is None else step_of(checkpoint.path)


_SNAPSHOT = "checkpoint_manager_snapshot.json"
_ASIDE = "snapshot_before.json"
_PAUSES_S = (0.05, 0.1, 0.2, 0.4)
