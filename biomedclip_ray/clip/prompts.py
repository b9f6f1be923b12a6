"""Classify images without training: the text tower writes the classifier, from class names put into prompts.

Source: Radford et al. 2021 (arXiv 2103.00020), section 3.1.4: the vectors of all prompts of a class are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class TextEncoder(Protocol):
    """An Encoder, or whatever has its vectors of texts."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float32 unit vectors."""


def class_weights(encoder: TextEncoder, names: dict[str, list[str]] | list[str], templates: list[str]) -> np.ndarray:
    """One unit vector a class: the mean of the unit vectors of all its names in all templates.

    Args:
        encoder: the CLIP.
        names: label -> its natural names, or a list of labels that are their own names; its order is the classes'.
        templates: prompts with `{}` where the name goes.

    Returns:
        float32 (classes, dimensions).

    Raises:
        ValueError: no class, a class without name or with a text where a list of names belongs, no template, or one
            without `{}`.
    """
    by_label = names if isinstance(names, dict) else {name: [name] for name in names}
    if not by_label:
        raise ValueError("no classes to tell apart")
    spelt = [label for label, own in by_label.items() if isinstance(own, str)]
    if spelt:  # its letters would be the names
        raise ValueError(f"names of class {spelt[0]!r} must be a list, not the text {by_label[spelt[0]]!r}")
    nameless = [label for label, own in by_label.items() if not own]
    if nameless:
        raise ValueError(f"class {nameless[0]!r} has no name to put into the prompts")
    blind = [template for template in templates if "{}" not in template]
    if blind or not templates:
        raise ValueError(f"a prompt needs {{}} where the class name goes: {blind or templates}")
    prompts = [template.replace("{}", name) for own in by_label.values() for name in own for template in templates]
    vectors = encoder.encode_text(prompts)
    ends = np.cumsum([len(own) * len(templates) for own in by_label.values()])
    means = np.stack([part.mean(axis=0) for part in np.split(vectors, ends[:-1])])
    weights: np.ndarray = means / np.linalg.norm(means, axis=1, keepdims=True)
    return weights.astype(np.float32)


def classify(image_vectors: np.ndarray, weights: np.ndarray, logit_scale: float) -> np.ndarray:
    """Class probabilities.

    Args:
        image_vectors: float32 (n, d), unit length.
        weights: float32 (classes, d), from `class_weights`.
        logit_scale: the model's, already exponentiated.

    Returns:
        float32 (n, classes); each row sums to 1.
    """
    logits = logit_scale * (image_vectors.astype(np.float64) @ weights.astype(np.float64).T)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = odds / odds.sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32)
