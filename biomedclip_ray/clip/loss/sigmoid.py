"""SigLIP's loss: each image with each text is a yes or no of its own; summed over texts, mean over images.

Pairs of one group are left out of the sum, their own yes stays. Zhai et al. 2023 (arXiv 2303.15343).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from biomedclip_ray.clip.loss.base import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from biomedclip_ray.clip.loss.sums import Sums


def _block(sums: Sums, image: Tensor, text: Tensor, rows: slice, group: Tensor | None) -> None:
    """Rows of images against all texts; each logit counts by how far it lies on its right side."""
    import torch

    from biomedclip_ray.clip.loss.sums import add_gradient, same_group

    assert sums.bias_value is not None
    right = (image[rows] @ text.T).mul_(-sums.scale_value).sub_(sums.bias_value)
    own = torch.arange(rows.start, rows.stop, device=image.device)[:, None]
    right.scatter_(1, own, -right.gather(1, own))
    if group is not None:
        right.masked_fill_(same_group(group, rows, own), torch.inf)
    sums.loss -= torch.nn.functional.logsigmoid(right).sum() / len(image)
    if sums.wanted:
        slope = right.neg_().sigmoid_().div_(len(image))
        slope.scatter_(1, own, -slope.gather(1, own))
        sums.bias += slope.sum()
        add_gradient(sums, image, text, sums.image, sums.text, rows, slope)


def _chance(batch: int) -> float:
    """Every logit the same, best where it says yes to one pair in a batch: ln N for the one, nearly 1
    for the others.
    """
    return math.log(batch) + ((batch - 1) * math.log(batch / (batch - 1)) if batch > 1 else 0.0)


SIGMOID = Loss("sigmoid", True, _chance, lambda batch: "", _block)
