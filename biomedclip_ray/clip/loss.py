"""Contrastive losses over the gathered batch, in pure torch: softmax InfoNCE and the sigmoid loss.

Every worker computes the rows of its own pairs against all pairs. The logits are made and used in blocks of rows, with
their gradient, and thrown away: a worker holds `block x N x 4` bytes of logits (block 256 and N = 4,096: 4 MB)
instead of `N x N x 4` and what autograd keeps of it, at no extra multiplication (`benchmarks/loss_memory.py`). The price is
that the loss cannot be differentiated twice.

**Scale.** What the losses return is the mean over the global batch, the same number on every worker. The gradient of a
worker is that of `world size x its share`, so that the *mean* over workers, which DDP takes, is the gradient of that
number: exact for any number of workers, also when their rows differ in number.

**Group mask.** Pairs of one group (the same picture) are not each other's negatives; a negative group is nobody's.

Sources: Radford et al. 2021 (CLIP, arXiv 2103.00020); Zhai et al. 2023 (SigLIP, arXiv 2303.15343); the gradient in the
forward pass as in fused cross entropies; feature caching, for which `loss_from_features` is made: Gao et al. 2021
(arXiv 2101.06983).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BLOCK = 256
"""Rows whose logits are held at once."""


def info_nce(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    group: Tensor | None = None,
    *,
    sizes: Sequence[int] | None = None,
    block: int = BLOCK,
) -> Tensor:
    """Symmetric InfoNCE, exact over the pairs of all workers, with gradient through the gather.

    Args:
        image, text: (n, d) unit vectors of this worker's pairs, row i of both is pair i.
        logit_scale: scalar, already exponentiated.
        group: int64 (n,), or None where every pair is alone.
        sizes: rows of every worker, by rank. None asks the others, which waits for the device; a trainer that knows
            passes it.
        block: rows of logits held at once.

    Returns:
        Scalar (see **Scale** in the module's docstring), in float32 or the inputs' float64.

    Raises:
        ValueError: shapes that do not fit.
    """
    return _over_workers(image, text, logit_scale, None, group, sizes, block)


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    group: Tensor | None = None,
    *,
    sizes: Sequence[int] | None = None,
    block: int = BLOCK,
) -> Tensor:
    """SigLIP's loss: each image with each text is a yes or no of its own; summed over texts, mean over images.

    Arguments as in `info_nce`; `logit_bias` is a scalar added to every logit. Pairs of one group are left out of the
    sum, their own yes stays.
    """
    return _over_workers(image, text, logit_scale, logit_bias, group, sizes, block)


def loss_from_features(
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

    For feature caching: gather the vectors of all micro-blocks, make them leaves, call this and `backward()`, and hand
    each micro-block its slice of the gradient. With `rows=None` the gradient on every vector is whole, and every
    worker gets the same; with rows of its own each worker gets a share, and the shares sum to the whole.

    Args:
        image, text: (N, d) unit vectors of the global batch.
        logit_scale: scalar, already exponentiated.
        group: int64 (N,) or None.
        logit_bias: scalar: the sigmoid loss; None: InfoNCE.
        rows: pairs whose loss is summed; None: all.
        block: rows of logits held at once.

    Returns:
        Scalar: sum over `rows` divided by N.
    """
    if image.shape != text.shape or image.ndim != 2 or not len(image):
        raise ValueError(f"image {tuple(image.shape)} and text {tuple(text.shape)} must be the same (n, d), n > 0")
    if group is not None and group.shape != image.shape[:1]:
        raise ValueError(f"group {tuple(group.shape)} must be ({len(image)},), one number a pair")
    start, stop, _ = (rows or slice(None)).indices(len(image))
    wide = torch.float64 if image.dtype == torch.float64 else torch.float32
    with torch.autocast(image.device.type, enabled=False):
        scale = logit_scale.to(wide).reshape(())
        bias = None if logit_bias is None else logit_bias.to(wide).reshape(())
        loss: Tensor = _Contrast.apply(image.to(wide), text.to(wide), scale, bias, group, start, stop, block)
    return loss


def _over_workers(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    group: Tensor | None,
    sizes: Sequence[int] | None,
    block: int,
) -> Tensor:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return loss_from_features(image, text, scale, group, bias, block=block)
    if sizes is None:
        sizes = _sizes(image)
    rank, world = dist.get_rank(), dist.get_world_size()
    if len(sizes) != world or sizes[rank] != len(image):
        raise ValueError(f"sizes={list(sizes)} does not fit {world} workers with {len(image)} rows on rank {rank}")
    start = sum(sizes[:rank])
    groups = None if group is None else gather(group, sizes)
    share = loss_from_features(
        _GatherWithGradient.apply(image, sizes),
        _GatherWithGradient.apply(text, sizes),
        scale,
        groups,
        bias,
        rows=slice(start, start + len(image)),
        block=block,
    )
    total = share.detach().clone()
    dist.all_reduce(total)
    local = share * world
    return local + (total - local.detach())  # the value of the whole, the gradient of the share


class _Contrast(torch.autograd.Function):
    """Loss and gradient block by block; the gradient is made where the logits are, in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        group: Tensor | None,
        start: int,
        stop: int,
        block: int,
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad[:4])
        sums = _Sums(image, text, scale, bias, wanted)
        for first in range(start, stop, block):
            rows = slice(first, min(first + block, stop))
            if bias is None:
                _softmax_block(sums, image, text, sums.image, sums.text, rows, group)
                _softmax_block(sums, text, image, sums.text, sums.image, rows, group)
            else:
                _sigmoid_block(sums, image, text, rows, group)
        if wanted:
            ctx.save_for_backward(sums.image, sums.text, sums.scale, sums.bias)
        return sums.loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad[:4], strict=True)
        return (*(one * grads[0] if need else None for one, need in needed), None, None, None, None)


class _Sums:
    """What the blocks add to: the loss and its gradient on each input."""

    def __init__(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, wanted: bool) -> None:
        self.scale_value, self.bias_value, self.wanted = scale, bias, wanted
        self.loss = image.new_zeros(())
        self.scale, self.bias = image.new_zeros(()), image.new_zeros(())
        self.image = torch.zeros_like(image) if wanted else image
        self.text = torch.zeros_like(text) if wanted else text


def _softmax_block(
    sums: _Sums, a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor, rows: slice, group: Tensor | None
) -> None:
    """Rows of `a` against all of `b`: half of each row's cross entropy."""
    logits = (a[rows] @ b.T).mul_(sums.scale_value)
    own = torch.arange(rows.start, rows.stop, device=a.device)[:, None]
    if group is not None:
        logits.masked_fill_(_same_group(group, rows, own), -torch.inf)
    weight = 0.5 / len(a)
    norm = torch.logsumexp(logits, dim=1, keepdim=True)
    sums.loss += weight * (norm - logits.gather(1, own)).sum()
    if sums.wanted:
        slope = logits.sub_(norm).exp_()
        slope.scatter_add_(1, own, slope.new_full(own.shape, -1.0)).mul_(weight)
        _add_gradient(sums, a, b, grad_a, grad_b, rows, slope)


def _sigmoid_block(sums: _Sums, image: Tensor, text: Tensor, rows: slice, group: Tensor | None) -> None:
    """Rows of images against all texts; each logit counts by how far it lies on its right side."""
    assert sums.bias_value is not None
    right = (image[rows] @ text.T).mul_(-sums.scale_value).sub_(sums.bias_value)
    own = torch.arange(rows.start, rows.stop, device=image.device)[:, None]
    right.scatter_(1, own, -right.gather(1, own))
    if group is not None:
        right.masked_fill_(_same_group(group, rows, own), torch.inf)
    sums.loss -= torch.nn.functional.logsigmoid(right).sum() / len(image)
    if sums.wanted:
        slope = right.neg_().sigmoid_().div_(len(image))
        slope.scatter_(1, own, -slope.gather(1, own))
        sums.bias += slope.sum()
        _add_gradient(sums, image, text, sums.image, sums.text, rows, slope)


def _add_gradient(
    sums: _Sums, a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor, rows: slice, slope: Tensor
) -> None:
    """`slope` is the loss's derivative by each logit of the block, where logit = scale x cosine (+ bias).

    The sum of slope x cosine, which the scale needs, is that of a x (slope @ b): no cosine is kept for it.
    """
    toward = slope @ b
    sums.scale += (toward * a[rows]).sum()
    grad_a[rows] += toward.mul_(sums.scale_value)
    grad_b.addmm_(slope.T, a[rows] * sums.scale_value)


def _same_group(group: Tensor, rows: slice, own: Tensor) -> Tensor:
    """bool (rows, N): another pair of the row's group; `own` int64 (rows, 1)."""
    mine = group[rows, None]
    same = (mine == group[None, :]) & (mine >= 0)
    return same.scatter_(1, own, False)


class _GatherWithGradient(torch.autograd.Function):
    """All workers' rows, by rank; backward sums what every worker's loss says about our rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.sizes = sizes
        return gather(rows, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        whole = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        rank = dist.get_rank()
        start = sum(ctx.sizes[:rank])
        return whole[start : start + ctx.sizes[rank]], None


def gather(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """(n, ...) of each worker to (sum of sizes, ...), by rank; shorter workers are padded on the way, as the backends ask. No
    gradient."""
    if len(sizes) == 1:
        return rows
    longest = max(sizes)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _sizes(rows: Tensor) -> list[int]:
    mine = torch.tensor([len(rows)], device=rows.device)
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    return [int(part) for part in parts]
