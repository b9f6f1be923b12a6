"""What training begins with and what it leaves: the bundle start/, built once, and the bundle of the best checkpoint.
Each is written by one task, so that weights are fetched once and never by the driver.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError

from biomedclip_ray.config import Config, ConfigError
from biomedclip_ray.run.capacity import known
from biomedclip_ray.run.placement import place as place_task
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product
from biomedclip_ray.train import checkpoint, validate
from biomedclip_ray.train.check import STARTED, build
from biomedclip_ray.train.rows import SPLIT, texts

START = "start"
BUNDLE = "bundle"
_TASK_CPUS = 0.5


def first_bundle(config: Config, pairs: Product, corpus: Product, place: Place) -> dict[str, Any]:
    """Build what training starts from, once: the bundle start/ and its facts, which are written last."""
    if not place.exists(STARTED):
        try:
            ray.get(_build.options(**place_task(known(), _TASK_CPUS).options).remote(config, pairs, corpus, place.uri))
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, ConfigError) else error from None
    facts: dict[str, Any] = json.loads(place.read(STARTED))
    return facts


@ray.remote
def _build(config: Config, pairs: Product, corpus: Product, uri: str) -> None:
    from biomedclip_ray.clip.bundle import save_bundle

    place = Place(uri)
    built, tokenizer = build(config, texts(pairs, corpus, SPLIT))
    wanted = config.train.validation_pairs
    if wanted and config.train.epochs and not validate.copy_pairs(pairs, corpus, wanted, place):
        raise ConfigError(
            f"train.validation_pairs={wanted}, but no kept pair is in the validation split: raise "
            "curate.splits.validation, or "
            "set train.validation_pairs=0 (the last checkpoint then becomes the bundle)"
        )
    with _local_folder(place.at(START)) as folder:
        save_bundle(folder, built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {"starts": built.starts})
    size = built.preprocess_cfg["size"]
    facts = {
        "starts": built.starts,
        "params": sum(p.numel() for p in built.model.parameters()),
        "image_size": size if isinstance(size, int) else int(np.max(size)),
        "context_length": tokenizer.context_length,
    }
    place.write(STARTED, json.dumps(facts).encode())


def final_bundle(config: Config, place: Place, provenance: dict[str, Any]) -> dict[str, Any]:
    """Write what was trained as the bundle; returns its id and what chose its checkpoint.

    On a node that training has left: those of the data stages have gone hours ago.
    """
    where = place_task(known(), _TASK_CPUS, beside="gpus" if config.train.resources.gpus_per_worker else "cpus")
    exported: dict[str, Any] = ray.get(_export.options(**where.options).remote(place.uri, provenance))
    return exported


@ray.remote
def _export(uri: str, provenance: dict[str, Any]) -> dict[str, Any]:
    """The best checkpoint by validation, else the newest, as a bundle.

    Without steps it is the bundle that training would have started from.
    """
    from biomedclip_ray.clip.bundle import PROVENANCE, load_bundle, save_bundle

    place = Place(uri)
    bundle = load_bundle(place.at(START).uri)
    choice: dict[str, Any] = {"chosen_by": "none", "chosen_step": 0}
    if provenance["steps"]:
        scores = {step: validate.score(figures) for step, figures in validate.figures(place).items()}
        best = checkpoint.best(place, scores)
        chosen = best or checkpoint.newest(place)
        if chosen is None:
            raise FileNotFoundError(f"{uri} has no checkpoint to export")
        choice = {"chosen_by": validate.SPLIT if best else "last", "chosen_step": checkpoint.step_of(chosen.path)}
        with chosen.as_directory() as folder:
            bundle.model.load_state_dict(checkpoint.weights(Path(folder), bundle.model))
    with _local_folder(place.at(BUNDLE)) as target:
        info = bundle.info
        save_bundle(
            target, bundle.model, info["model_cfg"], info["preprocess_cfg"], bundle.tokenizer, provenance | choice
        )
    written = json.loads(place.at(BUNDLE).read(PROVENANCE))
    return {"bundle_id": written["bundle_id"], **choice}


def provenance(config: Config, start: dict[str, Any], steps: int, rows: int, corpus: Product | None) -> dict[str, Any]:
    return {
        "name": "biomedclip_ray",
        "starts": start["starts"],
        "corpus": corpus.fingerprint if corpus is not None else "unknown",
        "steps": steps,
        "pairs": rows,
        "config": {"model": config.model.model_dump(mode="json"), "train": config.train.model_dump(mode="json")},
    }


@contextmanager
def _local_folder(place: Place) -> Iterator[Path]:
    """A folder to write into: the place itself on a local disk, else a scratch folder that is uploaded at the end."""
    if place.local is not None:
        yield place.local
        return
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        yield Path(scratch)
        place.upload(Path(scratch))


@contextmanager
def local_copy(place: Place) -> Iterator[Path]:
    """The place as a local folder to read from."""
    if place.local is not None:
        yield place.local
        return
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        place.download(Path(scratch))
        yield Path(scratch)
