"""Checkpoints: weights, optimiser and the one integer, written aside and uploaded while training goes on.

Weights are safetensors under open_clip's own names, whatever was compiled or wrapped; the optimiser's moments, by the
same names, a torch file that loads without unpickling code. A sharded run writes each worker's own shards instead
(torch's distributed checkpoint), which any number of workers reads. Which checkpoint counts is Ray Train's snapshot
file, written after the upload: a half-written folder is never resumed from. Feed and workers read the same snapshot, so
both begin at the same step.
"""

from __future__ import annotations

import json
import logging
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import Checkpoint, Result
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError

from biomedclip_ray.store.place import Place

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
WHOLE, SHARDED = "whole", "sharded"
"""The form of a checkpoint, which its state.json says: left-over files of the other form change nothing."""


def folder_name(steps_done: int) -> str:
    return f"step-{steps_done:08d}"


def step_of(name: str) -> int:
    """The steps done that a checkpoint's folder name or path tells."""
    return int(Path(name).name.removeprefix("step-"))


def save(folder: Path, learner: Learner, state: dict[str, Any], rank: int) -> None:
    """Write this worker's part of a checkpoint into a local folder of its own: all of it on rank 0, unless it is
    sharded.

    `state` is JSON with at least `step`, the optimiser steps done. Every worker calls.
    """
    import torch
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    from biomedclip_ray.clip.folder import clean_names

    if learner.recipe.resources.shard:
        dcp.save(_sharded_state(learner), checkpoint_id=folder / SHARDS)
    elif rank == 0:
        for name, tensors in ((WEIGHTS, clean_names(learner.model.state_dict())), (AVERAGE, learner.ema)):
            if tensors:
                whole = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
                save_file(whole, folder / name)
        torch.save(get_optimizer_state_dict(learner.model, learner.optimizer), folder / OPTIMIZER)
    if rank == 0:
        form = SHARDED if learner.recipe.resources.shard else WHOLE
        (folder / STATE).write_text(json.dumps(state | {"form": form}))


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
        sharded = state.pop("form") == SHARDED
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
    if json.loads((folder / STATE).read_text())["form"] == SHARDED:
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
    """Before a run goes on: the newest record of checkpoints that is whole, without those that cannot be opened any
    more.

    A kill may cut the record, a crash of the machine the newest checkpoint; what lies there whole is gone on from.
    """
    run = product.at(RUN)
    if not run.exists(_SNAPSHOT):
        return
    text = run.read(_SNAPSHOT)
    if cut := not _whole(text):
        text = run.read(_ASIDE) if run.exists(_ASIDE) else b"{}"
    record = json.loads(text)
    results, numbers = record.get("checkpoint_results", []), record.get("checkpoint_report_indices", [])
    there = [(n, one) for n, one in zip(numbers, results, strict=True) if _opens(run.at(one["checkpoint_dir_name"]))]
    if not cut and len(there) == len(results):
        return
    if there:
        run.write(_SNAPSHOT, json.dumps(_with_only(there, record)).encode())
    else:
        run.delete(_SNAPSHOT)
    what = "record of checkpoints was cut off by a kill" if cut else "checkpoint cannot be opened"
    log.warning("train: the newest %s; going on after step %d", what, steps_done(product))


def _with_only(there: list[tuple[int, dict[str, Any]]], record: dict[str, Any]) -> dict[str, Any]:
    """Ray's record with only those checkpoints, each with the number of its report."""
    names = {one["checkpoint_dir_name"] for _, one in there}
    pending = [
        pair
        for pair in zip(record["pending_training_results"], record["pending_validation_specs"], strict=True)
        if pair[0]["checkpoint_dir_name"] in names
    ]
    changed = {
        "checkpoint_results": [one for _, one in there],
        "checkpoint_report_indices": [number for number, _ in there],
        "latest_checkpoint_result": max(there, key=lambda pair: pair[0])[1],
        "pending_training_results": [result for result, _ in pending],
        "pending_validation_specs": [spec for _, spec in pending],
    }
    told = {key: [name for name in record[key] if name in names] for key in record if key.endswith("_dir_names")}
    return record | changed | told


def _opens(folder: Place) -> bool:
    """Whether a checkpoint's files are there and reach their ends."""
    try:
        if json.loads(folder.read(STATE))["form"] == SHARDED:
            return folder.exists(f"{SHARDS}/.metadata")
        with folder.open(OPTIMIZER) as file, zipfile.ZipFile(file) as moments:
            moments.infolist()
        with folder.open(WEIGHTS) as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
            return bool(file.seek(0, 2) == 8 + size + end)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False


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
