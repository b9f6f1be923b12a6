"""Symmetric InfoNCE: softmax over the global batch, as CLIP. Radford et al. 2021 (arXiv 2103.00020)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from biomedclip_ray.clip.loss.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from biomedclip_ray.clip.loss.sums import Sums


def _block(sums: Sums, image: Tensor, text: Tensor, rows: slice, group: Tensor | None) -> None:
    """Rows of images against all texts, and rows of texts against all images."""
    _one_way(sums, image, text, sums.image, sums.text, rows, group)
    _one_way(sums, text, image, sums.text, sums.image, rows, group)


def _one_way(
    sums: Sums, a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor, rows: slice, group: Tensor | None
) -> None:
    """Rows of `a` against all of `b`: half of each row's cross entropy."""
    import torch

    from biomedclip_ray.clip.loss.sums import add_gradient, same_group

    logits = (a[rows] @ b.T).mul_(sums.scale_value)
    own = torch.arange(rows.start, rows.stop, device=a.device)[:, None]
    if group is not None:
        logits.masked_fill_(same_group(group, rows, own), -torch.inf)
    weight = 0.5 / len(a)
    norm = torch.logsumexp(logits, dim=1, keepdim=True)
    sums.loss += weight * (norm - logits.gather(1, own)).sum()
    if sums.wanted:
        slope = logits.sub_(norm).exp_()
        slope.scatter_add_(1, own, slope.new_full(own.shape, -1.0)).mul_(weight)
        add_gradient(sums, a, b, grad_a, grad_b, rows, slope)


INFO_NCE = Loss("infonce", False, math.log, lambda batch: f"ln({batch:,})", _block)
