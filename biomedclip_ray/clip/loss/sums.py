"""What the blocks of a loss add to, and how."""

from __future__ import annotations

import torch
from torch import Tensor


class Sums:
    """What the blocks add to: the loss and its gradient on each input."""

    def __init__(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, wanted: bool) -> None:
        self.scale_value, self.bias_value, self.wanted = scale, bias, wanted
        self.loss = image.new_zeros(())
        self.scale, self.bias = image.new_zeros(()), image.new_zeros(())
        self.image = torch.zeros_like(image) if wanted else image
        self.text = torch.zeros_like(text) if wanted else text


def add_gradient(sums: Sums, a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor, rows: slice, slope: Tensor) -> None:
    """`slope` is the loss's derivative by each logit of the block, where logit = scale x cosine (+ bias).

    The sum of slope x cosine, which the scale needs, is that of a x (slope @ b): no cosine is kept for it.
    """
    toward = slope @ b
    sums.scale += (toward * a[rows]).sum()
    grad_a[rows] += toward.mul_(sums.scale_value)
    grad_b.addmm_(slope.T, a[rows] * sums.scale_value)


def same_group(group: Tensor, rows: slice, own: Tensor) -> Tensor:
    """bool (rows, N): another pair of the row's group; `own` int64 (rows, 1)."""
    mine = group[rows, None]
    same = (mine == group[None, :]) & (mine >= 0)
    return same.scatter_(1, own, False)
