"""A contrastive loss over the gathered batch, block by block, in pure torch.

Every worker computes the rows of its own pairs against all pairs. The logits are made and used in blocks of rows, with
their gradient, and thrown away: a worker holds `block x N x 4` bytes of logits (block 256 and N = 4,096: 4 MB) instead
of `N x N x 4` and what autograd keeps of it, at no extra multiplication (`benchmarks/loss_memory.py`). The price is
that the loss cannot be differentiated twice.

**Group mask.** Pairs of one group (the same image) are not each other's negatives; a negative group is nobody's.

Sources: the gradient in the forward pass as in fused cross entropies; feature caching, for which `loss_from_features`
is made: Gao et al. 2021 (arXiv 2101.06983).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from biomedclip_ray.clip.loss.base import Loss
from biomedclip_ray.clip.loss.sums import Sums

BLOCK = 256
"""Rows whose logits are held at once."""


def loss_from_features(
    loss: Loss,
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    group: Tensor | None = None,
    logit_bias: Tensor | None = None,
    *,
    rows: slice | None = None,
    block: int = BLOCK,
) -> Tensor:
    """The share of `rows` in the mean loss over all pairs, from the vectors of all pairs; no communication.

    For feature caching: gather the vectors of all micro-batchs, make them leaves, call this and `backward()`, and hand
    each micro-batch its slice of the gradient. With `rows=None` the gradient on every vector is whole, and every
    worker gets the same; with rows of its own each worker gets a share, and the shares sum to the whole.

    Args:
        loss: which loss; see `LOSSES`.
        image, text: (N, d) unit vectors of the global batch.
        logit_scale: scalar, already exponentiated.
        group: int64 (N,) or None.
        logit_bias: scalar, for a loss that needs one.
        rows: pairs whose loss is summed; None: all.
        block: rows of logits held at once.

    Returns:
        Scalar: sum over `rows` divided by N, in float32 or the inputs' float64.

    Raises:
        ValueError: shapes that do not fit, or no bias for a loss that needs one.
    """
    if loss.needs_bias and logit_bias is None:
        raise ValueError(f"the loss {loss.name} needs a logit_bias")
    if image.shape != text.shape or image.ndim != 2 or not len(image):
        raise ValueError(f"image {tuple(image.shape)} and text {tuple(text.shape)} must be the same (n, d), n > 0")
    if group is not None and group.shape != image.shape[:1]:
        raise ValueError(f"group {tuple(group.shape)} must be ({len(image)},), one number a pair")
    start, stop, _ = (rows or slice(None)).indices(len(image))
    wide = torch.float64 if image.dtype == torch.float64 else torch.float32
    with torch.autocast(image.device.type, enabled=False):
        scale = logit_scale.to(wide).reshape(())
        bias = None if logit_bias is None else logit_bias.to(wide).reshape(())
        value: Tensor = _Contrast.apply(loss, image.to(wide), text.to(wide), scale, bias, group, start, stop, block)
    return value


class _Contrast(torch.autograd.Function):
    """Loss and gradient block by block; the gradient is made where the logits are, in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Loss,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        group: Tensor | None,
        start: int,
        stop: int,
        block: int,
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad[1:5])
        sums = Sums(image, text, scale, bias, wanted)
        for first in range(start, stop, block):
            rows = slice(first, min(first + block, stop))
            loss.block(sums, image, text, rows, group)
        if wanted:
            ctx.save_for_backward(sums.image, sums.text, sums.scale, sums.bias)
        return sums.loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad[1:5], strict=True)
        return (None, *(one * grads[0] if need else None for one, need in needed), None, None, None, None)


def gather(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """(n, ...) of each worker to (sum of sizes, ...), by rank; shorter workers are padded on the way, as the backends
    ask. No gradient.
    """
    if len(sizes) == 1:
        return rows
    longest = max(sizes)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
