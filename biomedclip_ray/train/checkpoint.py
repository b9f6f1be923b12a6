"""Checkpoints: weights, optimiser and the one integer, written aside and uploaded while training goes on.

Weights are safetensors under open_clip's own names, whatever was compiled or wrapped; the optimiser's moments, by the same
names, a torch file that loads without unpickling code. A sharded run writes each worker's own shards instead (torch's
distributed checkpoint), which any number of workers reads. Which checkpoint counts is Ray Train's snapshot file, written
after the upload: a half-written folder is never resumed from. Feed and workers read the same snapshot, so both begin at the
same step.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import Checkpoint, Result
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError

from biomedclip_ray.storage import Place

if TYPE_CHECKING:
    from torch import Tensor, nn

    from biomedclip_ray.train.step import Learner

log = logging.getLogger(__name__)

RUN = "checkpoints"
"""The folder in the product, and the name of Ray Train's run."""

WEIGHTS = "model.safetensors"
AVERAGE = "average.safetensors"
OPTIMIZER = "optimizer.pt"
SHARDS = "shards"
STATE = "state.json"


def folder_name(steps_done: int) -> str:
    return f"step-{steps_done:08d}"


def step_of(name: str) -> int:
    """The steps done that a checkpoint's folder name or path tells."""
    return int(Path(name).name.removeprefix("step-"))


def save(folder: Path, learner: Learner, state: dict[str, Any], rank: int) -> None:
    """Write this worker's part of a checkpoint into a local folder of its own: all of it on rank 0, unless it is sharded.

    `state` is JSON with at least `step`, the optimiser steps done. Every worker calls.
    """
    import torch
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    from biomedclip_ray.clip.bundle import clean_names

    if learner.recipe.resources.shard:
        dcp.save(_sharded_state(learner), checkpoint_id=folder / SHARDS)
    elif rank == 0:
        for name, tensors in ((WEIGHTS, clean_names(learner.model.state_dict())), (AVERAGE, learner.ema)):
            if tensors:
                whole = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
                save_file(whole, folder / name)
        torch.save(get_optimizer_state_dict(learner.model, learner.optimizer), folder / OPTIMIZER)
    if rank == 0:
        (folder / STATE).write_text(json.dumps(state))


def restore(checkpoint: Checkpoint, learner: Learner) -> dict[str, Any]:
    """Load a checkpoint into a learner, sharded or not, whatever wrote it; returns what `save` was given as `state`.

    Raises:
        RuntimeError: weights missing or unexpected (named).
    """
    import torch
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    with checkpoint.as_directory() as name:
        folder = Path(name)
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
        sharded = (folder / SHARDS).is_dir()
        if sharded:
            shards = _sharded_state(learner)
            dcp.load(shards, checkpoint_id=folder / SHARDS)
            weights, moments, average = shards["model"], shards["optimizer"], shards["average"]
        else:
            weights = load_file(folder / WEIGHTS)
            moments = torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu")
            average = load_file(folder / AVERAGE) if learner.ema else {}
        whole = StateDictOptions(full_state_dict=not sharded)
        set_model_state_dict(learner.model, weights, options=whole)
        set_optimizer_state_dict(learner.model, learner.optimizer, moments, options=whole)
        for key, kept in learner.ema.items():
            _copy(kept, average[key])
    return state


def weights(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """The weights that a checkpoint's folder holds for use, whole: averaged ones where they were averaged.

    Args:
        model: one that they fit, with whole weights.
    """
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file

    found = {name: value.clone() for name, value in model.state_dict().items()}
    if (folder / SHARDS).is_dir():
        dcp.load({"model": found}, checkpoint_id=folder / SHARDS, no_dist=True)
        averaged = {key.removeprefix("average.") for key in _keys(folder / SHARDS) if key.startswith("average.")}
        if averaged:
            dcp.load({"average": {key: found[key] for key in averaged}}, checkpoint_id=folder / SHARDS, no_dist=True)
        return found
    return load_file(folder / WEIGHTS) | (load_file(folder / AVERAGE) if (folder / AVERAGE).is_file() else {})


def _copy(into: Tensor, value: Tensor) -> None:
    """A whole value into a tensor that may be a shard."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(into, DTensor) and not isinstance(value, DTensor):
        value = distribute_tensor(value.to(into.device), into.device_mesh, into.placements)
    into.copy_(value)


def _keys(shards: Path) -> list[str]:
    from torch.distributed.checkpoint import FileSystemReader

    return list(FileSystemReader(shards).read_metadata().state_dict_metadata)


def _sharded_state(learner: Learner) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    return {
        "model": get_model_state_dict(learner.model),
        "optimizer": get_optimizer_state_dict(learner.model, learner.optimizer),
        "average": dict(learner.ema),
    }


def newest(product: Place) -> Checkpoint | None:
    """The checkpoint that a run in this product goes on from, or None before the first."""
    result = _result(product)
    return result.checkpoint if result else None


def kept(product: Place) -> list[Checkpoint]:
    """The checkpoints that are there."""
    result = _result(product)
    return [found for found, _ in result.best_checkpoints or ()] if result else []


def best(product: Place, scores: Mapping[int, float]) -> Checkpoint | None:
    """The kept checkpoint of the highest score, by step, the later one of equals; None where none was scored."""
    scored = [(scores[step], step, one) for one in kept(product) if (step := step_of(one.path)) in scores]
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
