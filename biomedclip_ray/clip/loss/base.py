"""What a contrastive loss is. Imports no torch: the configuration and the report ask for names and chance losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from biomedclip_ray.clip.loss.sums import Sums


@dataclass(frozen=True)
class Loss:
    """A contrastive loss over a global batch."""

    name: str
    needs_bias: bool
    """Whether the model must have a logit_bias."""
    chance: Callable[[int], float]
    """Pairs in a global batch -> the lowest loss of a model that cannot tell them apart."""
    chance_formula: Callable[[int], str]
    """The same as a short formula, "" where there is none."""
    block: Callable[[Sums, Tensor, Tensor, slice, Tensor | None], None]
    """(sums, image, text, rows, group) -> adds the loss of those rows and its gradient to the sums."""
