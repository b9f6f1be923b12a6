"""In what the towers compute: float32, or weights in bfloat16 where that is faster on this very device.

Weights cast to bfloat16 run three times as fast as float32 on CPUs with AMX (ViT-B/32, batch 32: 54 to 62 images a
second beside 18) at a cosine of 0.9999; autocast is slower than float32 there, because it casts the weights anew in
every pass. A CPU that has bfloat16 and no matrix unit for it may be faster or slower, so "auto" measures both, once,
when a model loads.
"""

from __future__ import annotations

import copy
import time
from typing import Any, Literal, NamedTuple

import torch

from biomedclip_ray.clip.packing import pack, packs_images
from biomedclip_ray.config.section import Precision

MIN_GAIN = 1.2
"""What bfloat16 must win to be taken."""
MIN_COSINE = 0.999
"""What each vector of noise must keep of its direction."""
_BATCH = 8
_TURNS = 3


class Choice(NamedTuple):
    precision: Literal["float32", "bfloat16"]
    note: str
    """Why, with what was measured."""


def has_bfloat16(device: torch.device) -> str | None:
    """The name of the hardware that multiplies bfloat16 here; None: there is none, and it would be emulated."""
    if device.type == "cuda":
        return "this GPU" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return next((name for name in ("amx_bf16", "avx512_bf16", "bf16") if able.get(name)), None)


def choose(model: Any, image_size: tuple[int, int], device: torch.device, wanted: Precision) -> Choice:
    """What `wanted` means for this model on this device; "auto" measures its image tower, which costs a
    second or two.
    """
    if wanted != "auto":
        return Choice(wanted, "as configured")
    hardware = has_bfloat16(device)
    if hardware is None:
        return Choice("float32", f"auto: {device.type} has no bfloat16")
    images = torch.randn(_BATCH, 3, *image_size, device=device)
    plain, plain_s = _timed(model, images)
    rounded, rounded_s = _timed(model, images.to(torch.bfloat16))
    gain = plain_s / rounded_s
    cosine = torch.nn.functional.cosine_similarity(plain, rounded).min().item()
    note = f"auto: on {hardware} bfloat16 is {gain:.2f} times as fast as float32, cosine {cosine:.5f}"
    return Choice("bfloat16" if gain >= MIN_GAIN and cosine >= MIN_COSINE else "float32", note)


@torch.inference_mode()
def _timed(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The image tower's vectors and the seconds of its quickest pass, in the type of the images."""
    model = copy.deepcopy(model).to(images.dtype)
    if packs_images(images.dtype):
        pack(model, lambda: model.encode_image(images[:1]))
    best = float("inf")
    for _ in range(_TURNS):
        began = time.perf_counter()
        vectors: torch.Tensor = model.encode_image(images).float().cpu()
        best = min(best, time.perf_counter() - began)
    return vectors, best
