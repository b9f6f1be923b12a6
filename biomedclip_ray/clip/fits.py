"""Whether the parts of a CLIP belong together: weights, config, tokenizer and how images enter.

open_clip makes much fit without a word: it takes OpenAI's mean and std where none are given, ignores a size, stretches
positions. Each of these gives vectors, and wrong ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "open_clip_config.json"
_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class UnfitError(ValueError):
    """A CLIP that cannot be taken as it is; the message says what is missing and the way out."""


def preprocessing(folder: Path, whole: dict[str, Any]) -> dict[str, Any] | None:
    """What preprocessor_config.json says where open_clip's config says nothing; else None.

    open_clip takes OpenAI's mean and std where none are given, whatever the model was trained with. Raises UnfitError.
    """
    given = whole.get("preprocess_cfg") or {}
    theirs = preprocess_of_transformers(folder)
    named = [key for key in ("mean", "std") if given.get(key)]
    if not named and theirs is None:
        raise UnfitError(
            f"nobody says how images enter: put preprocess_cfg with mean, std, interpolation and resize_mode of the "
            f"training into {CONFIG} (OpenAI's and SigLIP's differ)"
        )
    if len(named) == 1:
        raise UnfitError(f"preprocess_cfg has {named[0]} and not the other of mean and std; put both into {CONFIG}")
    if not named:
        return theirs
    for key in ("mean", "std") if theirs is not None else ():
        if any(abs(a - b) > 1e-3 for a, b in zip(given[key], theirs[key], strict=True)):  # type: ignore[index]
            raise UnfitError(
                f"{CONFIG} says {key} {given[key]}, preprocessor_config.json {theirs[key]}; "  # type: ignore[index]
                "one of them is not how it was trained: correct or remove that one"
            )
    return None


def check_size(given: dict[str, Any], size: Any) -> None:
    """open_clip ignores the size that preprocess_cfg gives where the tower has another. Raises UnfitError."""

    def square(value: Any) -> list[int]:
        return [value, value] if isinstance(value, int) else list(value)

    if given.get("size") and square(given["size"]) != square(size):
        raise UnfitError(f"preprocess_cfg.size={given['size']}, and the image tower takes {square(size)}")


def check_shapes(shapes: Mapping[str, tuple[int, ...]], config: dict[str, Any]) -> None:
    """What open_clip would trip over, or make fit without a word. Raises UnfitError."""
    if "logit_bias" in shapes and config.get("init_logit_bias") is None:
        raise UnfitError(
            f"the weights hold logit_bias, as SigLIP's do, and {CONFIG} does not name it: put "
            '"init_logit_bias": -10 into its model_cfg (the weights then set the value)'
        )
    rows = next((shapes[n][0] for n in ("positional_embedding", "text.positional_embedding") if n in shapes), None)
    context = config["text_cfg"].get("context_length", 77)
    takes_class = 1 if config["text_cfg"].get("embed_cls") else 0
    if rows is not None and rows != context + takes_class:
        raise UnfitError(
            f"the weights were trained on rows of {rows - takes_class} tokens, and {CONFIG} says context_length "
            f"{context}"
        )


def check_words(entries: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Whether tokenizer and text tower are of one model. Raises UnfitError."""
    names = (
        "token_embedding.weight",
        "text.token_embedding.weight",
        "text.transformer.embeddings.word_embeddings.weight",
    )
    rows = next((shapes[name][0] for name in names if name in shapes), None)
    if rows is not None and not rows / 2 <= entries <= rows:
        raise UnfitError(
            f"its tokenizer has {entries:,} entries, its text tower {rows:,}: it is another model's, or a file "
            "of it is missing"
        )


def preprocess_of_transformers(folder: Path) -> dict[str, Any] | None:
    """open_clip's preprocess_cfg as preprocessor_config.json says it; None where there is none."""
    says = read_json(folder / "preprocessor_config.json")
    if not says.get("image_mean") or not says.get("image_std"):
        return None
    size = says.get("size") or {}
    cropped = says.get("do_center_crop", False) and (isinstance(size, int) or "shortest_edge" in size)
    return {
        "mean": listed(says["image_mean"]) if says.get("do_normalize", True) else [0.0, 0.0, 0.0],
        "std": listed(says["image_std"]) if says.get("do_normalize", True) else [1.0, 1.0, 1.0],
        "interpolation": _RESAMPLING.get(says.get("resample", 3), "bicubic"),
        "resize_mode": "shortest" if cropped else "squash",
    }


def listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is none."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
