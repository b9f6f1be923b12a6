"""Captions at natural length: the text tower is run on groups of captions of about equal length, without their padding.

BERT padded to 256 costs more than the image tower, while figure captions fill a third of that on average. Sorted by
length and cut into groups that are trimmed to their longest caption, a batch keeps a few per cent of padding. It is
exact where nothing that a vector depends on looks at the padding: in Hugging Face towers, which mask it, and in
open_clip's own where they look back only and are read at the end token. Its other towers attend to it and are left
padded. The loss never sees any of this: features are put back into their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MIN_TOKENS = {"cpu": 512, "cuda": 3072}
"""What a group costs at least, in tokens: below that a kernel's start costs more than the padding it saves. CUDA's is
reckoned, not measured: a layer of BERT-base over 3,000 tokens takes an H100 about as long as the host to start its
kernels.
"""


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

    A Hugging Face tower gets its mask ready made, bool (n, 1, T, T), where it would look whether any token is padding
    at all, once for each group of captions; open_clip's own gets the part of its causal mask that it needs.
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
    """open_clip's CLIP adds all of its positions, whatever the row has: meanwhile it has that many. Others cut by
    themselves.
    """
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
    """Cut rows into groups of about equal length, so that what is paid is least: a group's rows times the tokens of its
    longest, rounded up to the eights that kernels like, and `min_tokens` at least.

    Returns:
        (rows, tokens) of each group, longest first: every row once, `tokens` at least its length, at most `context`.
    """
    padded = np.minimum(context, -(-np.asarray(lengths) // 8) * 8)
    by_length = np.argsort(-padded, kind="stable")
    tokens, first = np.unique(-padded[by_length], return_index=True)  # rows of one length are never parted
    tokens, edges = -tokens, np.append(first, len(padded))
    # from the shortest on: what the rows from each edge on cost, and where their first group ends
    cost, end = np.zeros(len(edges)), np.zeros(len(edges), np.int64)
    for at in reversed(range(len(tokens))):
        ways = np.maximum(min_tokens, tokens[at] * (edges[at + 1 :] - edges[at])) + cost[at + 1 :]
        end[at] = at + 1 + int(ways.argmin())
        cost[at] = ways.min()
    groups = []
    at = 0
    while at < len(tokens):
        groups.append((by_length[edges[at] : edges[end[at]]].tolist(), int(tokens[at])))
        at = int(end[at])
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
