"""What lies in a folder that holds a CLIP: which file has the weights and of which shapes, its tokenizer, the config of
its text tower.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from biomedclip_ray.clip.fits import UnfitError
from biomedclip_ray.clip.tokenizer import Tokenizer, Ways, load_tokenizer, openai_tokenizer

WEIGHTS = "open_clip_model.safetensors"
IMAGE_TOWER = "image_tower"
"""Folder in a bundle with the config.json of an image tower that timm has no name for."""
TOWER = "text_tower"
"""Folder in a bundle with the config.json of a Hugging Face text tower."""

# Where open_clip looks for weights, in its order; then it takes any other file of these kinds.
WEIGHT_FILES = (
    WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
_WEIGHT_KINDS = (".safetensors", ".bin", ".pth")
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

Value = TypeVar("Value")

log = logging.getLogger(__name__)


def weights_file(folder: Path) -> Path | None:
    """The file that open_clip takes the weights from."""
    known = [folder / name for name in WEIGHT_FILES]
    others = [file for kind in _WEIGHT_KINDS for file in folder.glob(f"*{kind}")]
    others.sort(key=lambda file: (file.suffix != ".safetensors", file))
    return next((file for file in (*known, *others) if file.is_file()), None)


def shapes_of(weights: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each weight of a file, by its name without wrappers."""
    if weights.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(weights, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return clean_names(shapes)
    from open_clip.factory import load_state_dict

    return clean_names({name: tuple(tensor.shape) for name, tensor in load_state_dict(str(weights)).items()})


def clean_names(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict without the prefixes that torch.compile, DDP, FSDP and checkpointing put into the names."""
    clean = {}
    for name, tensor in state.items():
        while _WRAPPERS.search(name):
            name = _WRAPPERS.sub(r"\1", name)
        clean[name] = tensor
    return clean


def tokenizer_of(folder: Path, text: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a text_cfg asks for. Raises UnfitError."""
    kwargs = dict(text.get("tokenizer_kwargs") or {})
    mode: Any = text.get("tokenizer_mode") or "plain"
    context = text.get("context_length", 77)
    unread = [key for key in ("language", "reduction_mask", "bpe_path", "additional_special_tokens") if kwargs.get(key)]
    if unread or mode not in ("plain", "clips"):
        raise UnfitError(
            f"text_cfg.{f'tokenizer_kwargs.{unread[0]}' if unread else 'tokenizer_mode'} is not understood"
        )
    if not text.get("hf_tokenizer_name"):
        return openai_tokenizer(context, kwargs.get("clean", "lower"))
    ways = Ways(kwargs.pop("clean", "whitespace"), bool(kwargs.pop("strip_sep_token", False)), mode)
    here = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "spiece.model", "merges.txt"))
    try:
        return load_tokenizer(folder if here else text["hf_tokenizer_name"], context, ways, **kwargs)
    except ValueError as error:
        raise UnfitError(str(error)) from error


def text_tower(folder: Path, text: dict[str, Any], shapes: dict[str, tuple[int, ...]], scratch: Path) -> str:
    """Where the Hugging Face tower's config is: in the bundle, else by its name, else read off the weights' shapes.

    The published BiomedCLIP names its tower on the hub and does not carry the config. Offline it is still known but
    for the number of heads, and every published BERT has heads of 64. Raises UnfitError.
    """
    from transformers import AutoConfig, BertConfig

    for candidate in (folder / TOWER, folder):
        file = candidate / "config.json"
        if file.is_file() and "model_type" in json.loads(file.read_text(encoding="utf-8")):
            return str(candidate)
    try:
        AutoConfig.from_pretrained(text["hf_model_name"])
        return str(text["hf_model_name"])
    except (OSError, ValueError) as error:
        words = shapes.get("text.transformer.embeddings.word_embeddings.weight")
        if words is None:
            raise UnfitError(
                f"the text tower {text['hf_model_name']} cannot be reached; put its config.json into {TOWER}/"
            ) from error
    vocab_size, width = words
    layers = {
        int(found[1]) for name in shapes if (found := re.search(r"^text\.transformer\.encoder\.layer\.(\d+)\.", name))
    }
    log.warning(
        "the config of the text tower %s is neither in %s nor to be reached: read off the weights, with heads of 64",
        text["hf_model_name"],
        folder,
    )
    BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // 64),
        intermediate_size=shapes["text.transformer.encoder.layer.0.intermediate.dense.weight"][0],
        max_position_embeddings=shapes["text.transformer.embeddings.position_embeddings.weight"][0],
        type_vocab_size=shapes["text.transformer.embeddings.token_type_embeddings.weight"][0],
    ).save_pretrained(scratch)
    return str(scratch)
