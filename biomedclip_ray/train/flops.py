"""What a step costs in arithmetic, counted once on the model itself, so that throughput can be told as a share of the
device's.

An image's cost is one number; a caption's is a T + b T^2 for T tokens (matrices and attention), fitted to two counts,
which is what a transformer does. Only what the vectors need is counted: padding, and what is computed twice for the
sake of memory, are no achievement (the convention of model FLOPs utilisation, Chowdhery et al. 2022, arXiv 2204.02311).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from biomedclip_ray.train.lengths import encode_text
from biomedclip_ray.train.towers import running_norms

TRAINING = 3
"""Forward and backward over forward: the backward pass multiplies twice for every product of the forward pass."""

PEAK = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "A10G": 70e12,
}  # fmt: skip
"""bf16 FLOP/s without sparsity by words of the device's name, from the makers' data sheets; the first
that fits counts.
"""


@dataclass(frozen=True)
class Flops:
    """FLOPs of a forward pass.

    Attributes:
        image: of one image.
        token: of one token, times the number of tokens.
        attention: times the square of the number of tokens.
    """

    image: float
    token: float
    attention: float

    def text(self, tokens: int) -> float:
        """Of one caption of that many tokens."""
        return self.token * tokens + self.attention * tokens**2


def count(model: Any, size: tuple[int, int], context: int, trims: bool) -> Flops:
    """Count on the model (open_clip's surface), for one image and one caption; in float32, on the model's device.

    Args:
        size: height and width of the images.
        trims: whether the text tower takes fewer tokens than its context; else every caption costs the whole context.
    """
    device = next(model.parameters()).device
    image = _forward(model, lambda: model.encode_image(torch.zeros(1, 3, *size, device=device), normalize=True))

    def text(tokens: int) -> float:
        ids: Tensor = torch.full((1, tokens), 1, dtype=torch.int64, device=device)
        return _forward(model, lambda: encode_text(model, ids))

    whole = text(context)
    if not trims:
        return Flops(image, whole / context, 0.0)
    half = context // 2
    attention = (whole / context - text(half) / half) / (context - half)
    return Flops(image, whole / context - attention * context, attention)


def peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s that the device can do at most in that precision; None where it is not known."""
    if device.type != "cuda" or precision != "bf16":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """bf16 FLOP/s of a device of that name ("NVIDIA A100-SXM4-80GB"); None where it is not known."""
    words = set(name.replace("-", " ").split())
    return next((value for part, value in PEAK.items() if words.issuperset(part.split())), None)


def _forward(model: nn.Module, run: Callable[[], Tensor]) -> float:
    """The counter knows no fused kernels: attention is written out and modules take their training path; blank inputs
    must not enter any statistics.
    """
    training = model.training
    model.train()
    for _, norm in running_norms(model):
        norm.eval()
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
    finally:
        model.train(training)
    return float(counter.get_total_flops())
