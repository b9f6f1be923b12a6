"""Stage train: corpus -> bundle, on Ray Train.

Three things happen: one task builds the model that training starts from (so that weights are fetched once and every
worker begins with the same), the worker group runs the steps, one task exports the bundle. Each is skipped where its
file is already there. A killed worker costs the steps since the last checkpoint and a restart of about ten seconds; a
killed driver the same, when the command is given again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, ValidationConfig

from biomedclip_ray.clip.loss import LOSSES
from biomedclip_ray.config import Config, ConfigError
from biomedclip_ray.run.capacity import Capacity, known
from biomedclip_ray.run.interrupt import in_thread
from biomedclip_ray.run.memory import keeping_freed
from biomedclip_ray.run.nodes import held_by_others, wait_for_nodes
from biomedclip_ray.run.stage import Made, RunParts, Stage
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.ledger import Count
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product, StageError
from biomedclip_ray.train import checkpoint, journal, validate
from biomedclip_ray.train.batches import Feed, InOrder, batches
from biomedclip_ray.train.bundles import START, final_bundle, first_bundle, local_copy, provenance
from biomedclip_ray.train.check import STARTED, build, check
from biomedclip_ray.train.metrics import Watch, read
from biomedclip_ray.train.nodes import placed
from biomedclip_ray.train.order import Order, shuffle_quality, total_steps
from biomedclip_ray.train.rows import SPLIT, SplitRows, find_rows

log = logging.getLogger(__name__)

VERSION = 2
_FEW_WORKERS = 16


class DivergedError(StageError):
    """The loss is not finite any more, or went up and stayed there; the message names the step and the last good
    checkpoint.
    """


def _content(config: Config, pairs: Product, corpus: Product) -> dict[str, Any]:
    # what only watches or stops a run is no part of what it makes: a run that diverged goes on with other limits
    recipe = config.train.content(exclude={"trackers", "divergence_steps", "on_nan"})
    return {"model": config.model.content(), "train": recipe}


def _inputs(config: Config, pairs: Product, corpus: Product) -> list[Product]:
    """A CLIP that is taken as it is (train.epochs=0) was not trained on any corpus of ours."""
    return [pairs, corpus] if config.train.epochs else []


def _work(attempt: Attempt, run_parts: RunParts, config: Config, pairs: Product, corpus: Product) -> Made:
    """Train on the kept pairs of the train split and export the bundle; with train.epochs=0 export model.bundle as it
    is.

    Raises:
        DivergedError: the loss became infinite or NaN, or rose and did not come back.
        ConfigError: the model cannot be built, or the split is empty.
        ray.train.TrainingFailedError: more worker losses than train.resources.max_failures.
    """
    place = attempt.place
    if config.train.epochs == 0:
        start = first_bundle(config, pairs, corpus, place)
        log.info("train: no epochs asked for, %s is taken as it is", start["starts"]["image"])
        exported = final_bundle(config, place, provenance(config, start, 0, 0, None))
        facts = {**start, **exported, "steps": 0, "pairs": 0, "attempts": 0}
        return Made(facts, counts=(Count("pair", 0, 0),))
    rows = find_rows(pairs, corpus, SPLIT, config.train.kind_weights, run_parts.tasks)
    steps = total_steps(len(rows), config.train.epochs, config.train.batch)
    start = first_bundle(config, pairs, corpus, place)
    log.info(
        "train: %d pairs, %d steps of %d, towers from %s; the chance loss is %.3f",
        *(rows.pairs, steps, config.train.batch, start["starts"], _chance(config)),
    )
    if config.train.warmup_steps >= steps:
        log.warning(
            "train: train.warmup_steps=%d of %d steps in all: the rate never reaches train.lr; lower it, or take more "
            "pairs or epochs",
            *(config.train.warmup_steps, steps),
        )
    order = _order(config, rows)
    checkpoint.mend(place)
    if checkpoint.steps_done(place) < steps:
        attempt.peak_rss = _fit_towers(config, pairs, place, rows, order, start, steps)["peak_rss"]
    if config.train.validation_pairs:
        catch_up(config, place)
    exported = final_bundle(config, place, provenance(config, start, steps, rows.pairs, corpus))
    validation = validate.figures(place)
    if config.train.validation_pairs and not validation:
        log.warning("train: no checkpoint could be measured (Ray's log says why); the last one became the bundle")
    facts = {
        **start,
        **exported,
        "validation": validation,
        "steps": steps,
        "pairs": rows.pairs,
        "rows_per_epoch": len(rows),
        "attempts": len(journal.attempts(place)),
        "loss": read(place)[-1]["loss"],
        "chance_loss": _chance(config),
        "shuffle": shuffle_quality(order, rows.article, config.train.batch),
    }
    return Made(facts, counts=(Count("pair", rows.pairs, rows.pairs),))


def _check(config: Config, pairs: Product, corpus: Product) -> Iterator[str]:
    if config.model.tokenizer != "fit" and config.model.bundle is None and not _started(config, pairs, corpus):
        from biomedclip_ray.clip.tokenizer import load_tokenizer

        try:
            load_tokenizer(config.model.tokenizer, 64)
        except (OSError, ValueError) as error:
            yield (
                f"model.tokenizer={config.model.tokenizer} cannot be loaded: {str(error).splitlines()[0]}; "
                "give a folder with tokenizer.json"
            )


def _fit(config: Config, capacity: Capacity, pairs: Product, corpus: Product) -> list[str]:
    return check(config, capacity)


def _try_out(config: Config, pairs: Product, corpus: Product) -> list[str]:
    """Build the towers once, where the tasks of training run as well."""
    if _started(config, pairs, corpus):  # a run that goes on has its towers and asks nobody for weights
        return []

    def attempt() -> str:
        try:
            build(config)
        except ConfigError as error:
            return str(error)
        return ""

    problem = ray.get(ray.remote(num_cpus=0)(attempt).remote())
    return [problem] if problem else []


def _started(config: Config, pairs: Product, corpus: Product) -> bool:
    return train.plan(config, pairs, corpus).place.exists(STARTED)


train = Stage("train", VERSION, _content, _work, inputs=_inputs, check=_check, fit=_fit, try_out=_try_out)
"""Reads the pairs and the corpus."""


def _chance(config: Config) -> float:
    return LOSSES[config.train.loss].chance(config.train.batch)


def _order(config: Config, rows: SplitRows) -> Order:
    micro = config.train.batch // config.train.micro_batches
    window = max(1, config.train.window // micro) * micro
    return Order(rows.chunk_rows, window, config.train.seed)


def _fit_towers(
    config: Config, pairs: Product, place: Place, rows: SplitRows, order: Order, start: dict[str, Any], steps: int
) -> dict[str, Any]:
    """Run the worker group to the last step; returns what rank 0 returned."""
    from ray.train.torch import TorchTrainer  # loads torch, which a driver that trains nothing is spared

    from biomedclip_ray.clip.tokenizer import load_tokenizer
    from biomedclip_ray.train.loop import Job, train_loop

    recipe, resources = config.train, config.train.resources
    with local_copy(place.at(START)) as folder:
        tokenizer = load_tokenizer(folder, start["context_length"])
    capacity = known()
    places = placed(resources, capacity)
    wait_for_nodes("train", capacity, [(places.worker, resources.min_workers)], resources.wait_for_nodes_s)
    feed = ray.put(
        Feed(
            pairs,
            rows,
            order,
            tokenizer,
            start["image_size"],
            recipe.crop_scale,
            recipe.seed,
            recipe.batch // recipe.micro_batches,
            recipe.texts,
        )
    )

    def from_checkpoint() -> ray.data.Dataset:
        """Asked anew by Ray Train at each start of the worker group."""
        return batches(feed, checkpoint.steps_done(place) * recipe.batch, steps * recipe.batch, resources, places.feed)

    # Ray Train polls its workers every 2 s; what is not polled when a worker dies is lost, and each start and end waits
    # for polls: 11 of 25 s of a short run. Read by the controller, which gets RAY_TRAIN_* from here.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25" if resources.max_workers <= _FEW_WORKERS else "2")
    worker, selector = places.worker.bundle
    validates = place.exists(validate.PAIRS)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": Job(place.uri, place.at(START).uri, recipe, steps, len(rows), validates)},
        datasets={"train": from_checkpoint},
        dataset_config=InOrder(),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=bool(resources.gpus_per_worker),
            resources_per_worker=worker,
            label_selector=selector or None,
            elastic_resize_monitor_interval_s=resources.resize_interval_s,
        ),
        run_config=RunConfig(
            name=checkpoint.RUN,
            storage_path=place.uri,
            worker_runtime_env=keeping_freed(resources.gpus_per_worker),
            failure_config=FailureConfig(max_failures=resources.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=recipe.keep_checkpoints,
                checkpoint_score_attribute=validate.SCORE if validates else None,
            ),
        ),
        validation_config=ValidationConfig(
            fn=_validation(config, place),
            ray_remote_kwargs={"num_cpus": 0},  # what it starts has them
        )
        if validates
        else None,
    )
    with Watch(place, steps, checkpoint.steps_done(place), lambda: held_by_others("train", places.feed.work)):
        # in a thread: in the main one Ray Train keeps Ctrl-C for good (findings/ray_train_keeps_sigint.sh)
        result: dict[str, Any] = in_thread(trainer.fit).return_value
    if result["diverged"] is not None:
        what, fix = result["diverged"]
        good = checkpoint.newest(place)
        raise DivergedError(
            f"train: {what}; the last good checkpoint is {good.path if good else 'none'}; lower train.lr, lengthen "
            f"train.warmup_steps, {fix}"
        )
    return result


def _validation(config: Config, place: Place) -> validate.Validation:
    where = placed(config.train.resources, known()).validation
    return validate.Validation(place.uri, place.at(START).uri, where)


def catch_up(config: Config, place: Place) -> None:
    """Measure what the kept checkpoints lack: a kill may have come between the last step and the last measurement."""
    measured = validate.figures(place)
    for kept in checkpoint.kept(place):
        if checkpoint.step_of(kept.path) not in measured:
            try:
                _validation(config, place)(kept)
            except RuntimeError as error:
                log.warning("train: %s", str(error).partition("\n")[0])
