"""Weights of transformers' towers under other names, their queries, keys and values in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

IN_LAYERS = {
    ".self_attn.q_proj.": ".attn.in_proj_",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
"""Pieces of names inside a layer, and what open_clip calls them."""


def renamed(state: Mapping[str, Any], names: Callable[[str], Mapping[str, str]]) -> Iterator[tuple[str, Any]]:
    """Name and tensor (float32, contiguous) of each weight; queries stand for keys and values too.

    Args:
        names: of a weight: pieces of its name, and what they become, in turn.
    """
    import torch

    for name, tensor in state.items():
        if name.endswith("position_ids") or ".k_proj." in name or ".v_proj." in name:
            continue
        new = name
        for theirs, ours in names(name).items():
            new = new.replace(theirs, ours)
        if ".q_proj." in name:
            tensor = torch.cat([state[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
        yield new, tensor.float().contiguous()
