"""Captions at natural length: the text tower is run on groups of captions of about equal length, without their padding.

BERT padded to 256 costs more than the image tower, while figure captions fill a third of that on average. Sorted by length
and cut into groups that are trimmed to their longest caption, a batch keeps a few per cent of padding. It is exact where
nothing that a vector depends on looks at the padding: in Hugging Face towers, which mask it, and in open_clip's own where they
look back only and are read at the end token. Its other towers attend to it and are left padded. The loss never sees any of
this: features are put back into their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MIN_TOKENS = {"cpu": 512, "cuda": 8192}
"""Tokens of a group at least: below that a kernel's start costs more than the padding it saves."""

SLACK = 0.9
"""A caption joins a group as long as it fills this share of the longest; a multiple of eight tokens is kept for kernels."""


def ignores_padding(model: nn.Module) -> bool:
    """Whether the text tower gives the same vector for a row with less padding."""
    from open_clip.hf_model import HFTextEncoder
    from open_clip.model import CLIP
    from open_clip.transformer import TextTransformer

    tower: Any = _text_tower(model)
    if isinstance(tower, TextTransformer):
        return tower.pool_type == "eos" and tower.attn_mask is not None and tower.cls_emb is None
    if isinstance(tower, CLIP):
        return tower.text_pool_type == "eos" and tower.attn_mask is not None
    return isinstance(tower, HFTextEncoder)


def take_fewer_tokens(model: nn.Module) -> None:
    """Let a tower that ignores its padding run without it, and without the host waiting for the device.

    A Hugging Face tower gets its mask ready made, bool (n, 1, T, T), where it would look whether any token is padding at all, once
    for each group of captions; open_clip's own gets the part of its causal mask that it needs.
    """
    from open_clip.hf_model import HFTextEncoder

    tower: Any = _text_tower(model)
    if not isinstance(tower, HFTextEncoder):
        tower.transformer.register_forward_pre_hook(_cut_mask, with_kwargs=True)
    elif tower.transformer.config._attn_implementation == "sdpa":
        tower.transformer.register_forward_pre_hook(_ready_mask, with_kwargs=True)


def encode_text(model: nn.Module, tokens: Tensor) -> Tensor:
    """open_clip's `encode_text`, unit length, for rows of any number of tokens up to the context."""
    text: Tensor
    with _first_positions(model, tokens.shape[1]):
        text = model.encode_text(tokens, normalize=True)  # type: ignore[operator]
    return text


def _text_tower(model: nn.Module) -> nn.Module:
    """open_clip's CLIP is its own text tower, its CustomTextCLIP has one."""
    return dict(model.named_children()).get("text", model)


@contextmanager
def _first_positions(model: nn.Module, tokens: int) -> Iterator[None]:
    """open_clip's CLIP adds all of its positions, whatever the row has: meanwhile it has that many. Others cut by themselves."""
    whole = model._parameters.get("positional_embedding")
    if whole is None or len(whole) == tokens:
        yield
        return
    model._parameters["positional_embedding"] = whole[:tokens]  # type: ignore[assignment]  # a view with the same gradient
    try:
        yield
    finally:
        model._parameters["positional_embedding"] = whole


def _cut_mask(tower: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    tokens = args[0].shape[1]
    kwargs["attn_mask"] = kwargs["attn_mask"][:tokens, :tokens]
    return args, kwargs


def _ready_mask(tower: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mask: Tensor = kwargs["attention_mask"]
    if mask.ndim == 2:
        kwargs["attention_mask"] = mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    return args, kwargs


def length_groups(lengths: Sequence[int], context: int, min_tokens: int) -> list[tuple[list[int], int]]:
    """Cut rows into groups of about equal length.

    Returns:
        (rows, tokens) of each group, longest first: every row once, `tokens` at least its length, at most `context`.
    """
    by_length = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    groups: list[tuple[list[int], int]] = []
    for row in by_length:
        rows, tokens = groups[-1] if groups else ([], 0)
        if rows and (lengths[row] > SLACK * tokens or len(rows) * tokens < min_tokens):
            rows.append(row)
        else:
            groups.append(([row], min(context, -(-lengths[row] // 8) * 8)))
    return groups


def encode_at_natural_length(encode: Callable[[Tensor], Tensor], tokens: Tensor, lengths: Sequence[int]) -> Tensor:
    """`encode` (n, context) -> (n, d), run on trimmed groups; rows come back in their order.

    Args:
        tokens: int64 (n, context) on the device.
        lengths: tokens of each row, padding not counted; on the host, so that nothing waits for the device.
    """
    groups = length_groups(lengths, tokens.shape[1], MIN_TOKENS.get(tokens.device.type, MIN_TOKENS["cuda"]))
    order = torch.tensor([row for rows, _ in groups for row in rows])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    order, back = (index.to(tokens.device, non_blocking=True) for index in (order, back))
    ordered = tokens.index_select(0, order)
    pieces = ordered.split([len(rows) for rows, _ in groups])
    return torch.cat([encode(piece[:, :size]) for piece, (_, size) in zip(pieces, groups, strict=True)])[back]
