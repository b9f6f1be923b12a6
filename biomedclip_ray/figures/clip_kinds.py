"""Kinds of images by a CLIP's zero-shot answer, where preprocess.kinds.bundle names one, in place of the cheap guess
(`kinds.py`).

It costs a forward pass an image (a GPU's work at full scale) and a CLIP that was trained before, and looks at the image
alone. torch is imported in that case only, and a process loads the bundle once.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from biomedclip_ray.config import ConfigError, Kinds
from biomedclip_ray.schema import KINDS
from biomedclip_ray.store.place import Place

if TYPE_CHECKING:
    from biomedclip_ray.clip.encoder import Encoder

# How captions speak of each kind; a class is the mean of all its names in all templates.
NAMES: dict[str, list[str]] = {
    "micrograph": ["light micrograph", "bright-field microscopy image", "phase contrast micrograph of cells"],
    "fluorescence": ["fluorescence microscopy image", "confocal immunofluorescence image", "cells stained with DAPI"],
    "histology": ["histology section stained with H&E", "histopathology slide", "immunohistochemistry of a tissue "
                                                                                "section"],
    "electron_micrograph": ["electron micrograph", "transmission electron microscopy image", "scanning electron "
                                                                                             "micrograph"],
    "radiology": ["radiograph", "CT scan", "MRI scan", "ultrasound image"],
    "gel": ["western blot", "gel electrophoresis image", "immunoblot with lanes and bands"],
    "chart": ["bar chart", "line graph", "scatter plot", "Kaplan-Meier survival curve", "box plot"],
    "heat_map": ["heat map", "hierarchical clustering heat map of gene expression"],
    "signal": ["electrocardiogram trace", "EEG recording", "mass spectrum", "chromatogram"],
    "diagram": ["schematic diagram", "signaling pathway diagram", "flow chart of the study", "illustration of a "
                                                                                             "mechanism"],
    "chemical_structure": ["chemical structure", "structural formula of a compound", "reaction scheme of a synthesis"],
    "sequence": ["sequence alignment", "phylogenetic tree", "multiple alignment of amino acid sequences"],
    "table": ["table of values", "table listing characteristics of patients"],
    "map": ["geographic map", "map of the study area with sampling sites"],
    "photograph": ["clinical photograph", "endoscopy image", "fundus photograph", "photograph of a device"],
    "equation": ["mathematical equation", "formula"],
}  # fmt: skip
TEMPLATES = ["{}", "a figure showing a {}", "this is a photo of a {}"]


def bundle_id(config: Kinds) -> str | None:
    """What stands for the bundle in a fingerprint: the hash of its weights, tokenizer and config, wherever it lies.

    A bundle of ours carries it; any other CLIP is loaded for it.

    Raises:
        ConfigError: nothing there that can be loaded.
    """
    if config.bundle is None:
        return None
    if not config.bundle.startswith("hf-hub:"):
        place = Place(config.bundle.removeprefix("local-dir:"))
        try:
            return str(json.loads(place.read("bundle.json"))["bundle_id"])
        except (OSError, ValueError, KeyError):
            pass  # not one of ours, or none at all: loading tells
    return _id_of(config.bundle)


def name_kinds(rows: list[dict[str, Any]], config: Kinds, planned: str | None) -> None:
    """Put the likeliest kind and its probability into rows of PAIRS, by their `image`; nothing where no bundle is
    configured.

    Raises:
        ConfigError: the bundle cannot be loaded, or is another one than `planned`, the id in the fingerprint.
    """
    if config.bundle is None or not rows:
        return
    from biomedclip_ray.clip.prompts import classify

    encoder, weights = _classifier(config.bundle)
    if encoder.bundle_id != planned:
        raise ConfigError(
            f"preprocess.kinds.bundle={config.bundle} is {encoder.bundle_id}, and was {planned} when this run began"
        )
    odds = classify(encoder.encode_images([row["image"] for row in rows]), weights, encoder.logit_scale)
    for row, best, probability in zip(rows, odds.argmax(axis=1), odds.max(axis=1), strict=True):
        row["figure_kind"], row["figure_kind_score"] = KINDS[best], float(probability)


@lru_cache(maxsize=8)
def _id_of(uri: str) -> str:
    return _load(uri).bundle_id


@lru_cache(maxsize=1)
def _classifier(uri: str) -> tuple[Encoder, np.ndarray]:
    """The encoder, and a unit vector for each of KINDS."""
    from biomedclip_ray.clip.prompts import class_weights

    encoder = _load(uri)
    return encoder, class_weights(encoder, {kind: NAMES[kind] for kind in KINDS}, TEMPLATES)


def _load(uri: str) -> Encoder:
    from biomedclip_ray.clip.bundle import BundleError
    from biomedclip_ray.clip.encoder import Encoder

    try:
        return Encoder.load(uri)
    except BundleError as error:
        raise ConfigError(f"preprocess.kinds.bundle: {error}") from error
