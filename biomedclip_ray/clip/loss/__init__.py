"""Contrastive losses: each is one object in a file of its own, and a line here."""

from biomedclip_ray.clip.loss.base import Loss
from biomedclip_ray.clip.loss.infonce import INFO_NCE
from biomedclip_ray.clip.loss.sigmoid import SIGMOID

__all__ = ["LOSSES", "Loss"]

LOSSES: dict[str, Loss] = {loss.name: loss for loss in (INFO_NCE, SIGMOID)}
"""By the name that `train.loss` gives."""
