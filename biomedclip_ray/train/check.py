"""What of a config cannot train: one line each, with the key and the fix, before any worker and any stage starts.

`check` is arithmetic on what the cluster has. `build` makes tokenizer and towers just as training will and asks whether
the recipe can train them; the preflight tries it, since an unknown tower or weights that nobody can reach are better
known before hours of ingest than after.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from biomedclip_ray.clip.loss import LOSSES
from biomedclip_ray.clip.model import model_config
from biomedclip_ray.config import Config, ConfigError, TrainResources
from biomedclip_ray.run.capacity import Capacity
from biomedclip_ray.train.batches import WINDOW_CPUS
from biomedclip_ray.train.trackers import missing

if TYPE_CHECKING:
    from biomedclip_ray.clip.model import Built
    from biomedclip_ray.clip.tokenizer import Tokenizer

STARTED = "start.json"
"""In a train product: facts of the towers that training starts from, written when they lie there."""

_SOME_TEXT = "a gel"


def check(config: Config, capacity: Capacity) -> list[str]:
    """What of the config cannot run on a cluster of that size; imports no torch."""
    if config.train.epochs == 0:
        return []
    problems = [
        f"train.trackers={name}: the package {name} is not installed; pip install 'biomedclip-ray[trackers]'"
        for name in missing(config.train.trackers)
    ]
    if capacity.sized:
        problems += _no_room(config, capacity)
    if config.model.bundle is None:
        try:
            towers = model_config(config.model.config)
        except ConfigError as error:
            return [*problems, str(error)]
        if LOSSES[config.train.loss].needs_bias and "init_logit_bias" not in towers:
            problems.append(
                f"train.loss={config.train.loss} needs init_logit_bias (SigLIP: -10) in "
                f"model.config={config.model.config}; "
                "add it there, or set train.loss=infonce"
            )
    return problems


def _no_room(config: Config, capacity: Capacity) -> list[str]:
    wanted = config.train.resources
    cpus, gpus, nodes = capacity.total("CPU"), capacity.total("GPU"), capacity.nodes()
    fit = sum(_workers_on(node, wanted) for node in nodes)
    comes = max(wanted.min_workers, min(wanted.max_workers, fit))
    problems = _workers(wanted, gpus, nodes, fit) or _feed(wanted, cpus, nodes, comes)
    if config.train.validation_pairs and not problems:
        problems = _validation(config, cpus, gpus, nodes, comes)
    return problems


def build(config: Config, texts: Iterable[str] = (_SOME_TEXT,)) -> tuple[Built, Tokenizer]:
    """Towers and tokenizer that training starts from.

    Args:
        texts: the training captions, for a tokenizer that is fitted; a stand-in does where only the fit is asked.

    Raises:
        ConfigError: they cannot be built, or not trained by this recipe; names the key.
    """
    import torch

    from biomedclip_ray.clip.model import build_model, build_tokenizer
    from biomedclip_ray.train.towers import patch_dropout_slot

    tokenizer = build_tokenizer(config.model, texts)
    torch.manual_seed(config.train.seed)
    built = build_model(config.model, tokenizer)
    if config.train.epochs:
        if LOSSES[config.train.loss].needs_bias and getattr(built.model, "logit_bias", None) is None:
            key = "config" if config.model.bundle is None else "bundle"
            raise ConfigError(
                f"train.loss={config.train.loss} needs a model with a logit_bias; "
                f"model.{key}={getattr(config.model, key)} has none: "
                "set train.loss=infonce"
            )
        if config.train.patch_dropout:
            patch_dropout_slot(built.model)
    _try_out(
        built, tokenizer, f"bundle={config.model.bundle}" if config.model.bundle else f"config={config.model.config}"
    )
    return built, tokenizer


def _try_out(built: Built, tokenizer: Tokenizer, named: str) -> None:
    """A blank image and the longest caption go through the towers once. Raises ConfigError where they do not fit."""
    import torch
    from timm.layers import to_2tuple

    pixels = torch.zeros(1, 3, *to_2tuple(built.preprocess_cfg["size"]))
    tokens = torch.full((1, tokenizer.context_length), tokenizer.vocab_size - 1)
    try:
        with torch.no_grad():
            vectors = built.model.eval().encode_image(pixels), built.model.encode_text(tokens)
        if vectors[0].shape != vectors[1].shape:
            raise ValueError(f"vectors of {vectors[0].shape[1]} and of {vectors[1].shape[1]} numbers")
    except Exception as error:  # each library has its own for a wrong value of a config
        raise ConfigError(
            f"model.{named}: the towers cannot take an image of {pixels.shape[2]} x {pixels.shape[3]} and a caption of "
            f"{tokenizer.context_length} tokens numbered up to {tokenizer.vocab_size - 1} ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}): check vision_cfg, text_cfg and the tokenizer"
        ) from error
    built.model.train()


def _workers_on(node: Mapping[str, float], wanted: TrainResources) -> int:
    fit = math.floor(node.get("CPU", 0.0) / wanted.cpus_per_worker)
    if wanted.gpus_per_worker:
        fit = min(fit, math.floor(node.get("GPU", 0.0) / wanted.gpus_per_worker))
    return fit


def _workers(wanted: TrainResources, gpus: float, nodes: Sequence[Mapping[str, float]], fit: int) -> list[str]:
    """A worker runs on one node, whatever the others have."""
    workers = wanted.min_workers
    if workers * wanted.gpus_per_worker > gpus:
        return [
            f"train.resources.gpus_per_worker={wanted.gpus_per_worker:g} with train.resources.workers={workers} needs "
            f"{workers * wanted.gpus_per_worker:g} GPUs, the cluster has {gpus:g}; "
            "set train.resources.gpus_per_worker=0 to train on CPUs, or fewer workers"
        ]
    if fit < workers and len(nodes) > 1:
        share = f"train.resources.cpus_per_worker={wanted.cpus_per_worker:g}"
        if wanted.gpus_per_worker:
            share += f" and gpus_per_worker={wanted.gpus_per_worker:g}"
        return [
            f"{share}: a worker runs on one node, and on these nodes {_told(nodes)} there is room for {fit} of "
            f"train.resources.workers={wanted.workers}; lower one of them"
        ]
    return []


def _feed(wanted: TrainResources, cpus: float, nodes: Sequence[Mapping[str, float]], comes: int) -> list[str]:
    feed = wanted.feed_cpus + 2 * min(WINDOW_CPUS, wanted.feed_cpus)  # decode, read and cut
    # Ray Train keeps its workers' share, and what is left goes to Ray Data in whole CPUs: of 0.75 it gets none, and
    # stands still
    left = math.floor(max(0.0, cpus - comes * wanted.cpus_per_worker))
    if left < feed:
        fits = max(0.0, (cpus - math.ceil(feed)) / comes)
        return [
            f"train.resources.cpus_per_worker={wanted.cpus_per_worker:g} with {comes} workers (train.resources.workers="
            f"{wanted.workers}) leaves {left} whole CPUs of {cpus:g} to the feed, which needs {feed:g}; "
            f"set train.resources.cpus_per_worker={int(fits * 100) / 100:g} or less, or fewer workers"
        ]
    largest = _largest_left(nodes, wanted, comes, "CPU", wanted.cpus_per_worker)
    if wanted.feed_cpus > largest:
        return [
            f"train.resources.feed_cpus={wanted.feed_cpus:g}, but {comes} workers leave no node more than "
            f"{largest:g} CPUs; "
            "lower it, or cpus_per_worker"
        ]
    return []


def _largest_left(
    nodes: Sequence[Mapping[str, float]], wanted: TrainResources, comes: int, unit: str, worker: float
) -> float:
    """The most that the workers can leave on one node, wherever they are put; a task runs on one node, whatever others
    have.
    """
    rooms = [_workers_on(node, wanted) for node in nodes]
    return max(
        node.get(unit, 0.0) - max(0, comes - (sum(rooms) - room)) * worker
        for node, room in zip(nodes, rooms, strict=True)
    )


def _validation(
    config: Config, cpus: float, gpus: float, nodes: Sequence[Mapping[str, float]], comes: int
) -> list[str]:
    """The task that measures a checkpoint runs beside the workers: what they leave, or it waits until they are done."""
    wanted = config.train.resources
    problems = []
    if config.curate.splits.validation == 0 and config.own.uri is None:  # own pairs may name their split
        problems.append(
            f"train.validation_pairs={config.train.validation_pairs}, but curate.splits.validation=0 keeps no pair "
            "for it; "
            "raise that share, or set train.validation_pairs=0"
        )
    for unit, total, worker, need in (
        ("cpus", cpus, wanted.cpus_per_worker, wanted.validation_cpus),
        ("gpus", gpus, wanted.gpus_per_worker, wanted.validation_gpus),
    ):
        left = total - comes * worker
        largest = _largest_left(nodes, wanted, comes, unit[:-1].upper(), worker)
        key = f"train.resources.validation_{unit}={need:g}"
        if need > left:
            problems.append(
                f"{key}, but {comes} workers with {unit}_per_worker={worker:g} leave {max(0.0, left):g} of "
                f"{total:g} {unit[:-1].upper()}s; lower it, or train.resources.workers"
            )
        elif need > largest:
            problems.append(
                f"{key}, but {comes} workers leave no node more than {largest:g} {unit[:-1].upper()}s; lower it, or "
                f"{unit}_per_worker"
            )
    return problems


def _told(nodes: Sequence[Mapping[str, float]]) -> str:
    """(8 CPUs, 1 GPU; 4 CPUs, 0 GPUs), equal ones once."""
    kinds = {f"{node.get('CPU', 0.0):g} CPUs, {node.get('GPU', 0.0):g} GPUs": None for node in nodes}
    return f"({'; '.join(kinds)})"
