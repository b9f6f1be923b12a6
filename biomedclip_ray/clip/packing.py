"""Weights laid out as oneDNN multiplies them, for towers that only encode, on x86 CPUs.

`torch.nn.Linear` hands float32 to MKL, which lays out the weights anew in every pass. Laid out once by oneDNN, a matrix
product takes 0.8 of the time, for the few tokens of a short text a third (two cores of an EPYC). On Intel's own CPUs
MKL is the faster one where rows are many (`packs_images`). `torch.compile` does the same, with a C++ compiler at hand.
What is packed cannot be trained or saved any more. Vectors differ by rounding alone.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from biomedclip_ray.run.private import packed_linear, packed_weight, packs_bfloat16


def packs_images(dtype: torch.dtype) -> bool:
    """Whether an image tower gains, whose matrices have hundreds of rows an image. In float32 on Intel's CPUs it loses:
    6,304 rows of 768 numbers took oneDNN 1.1 times as long as MKL, 6 rows of 512 took it 0.8 (a Xeon of 2023).
    """
    cpus = Path("/proc/cpuinfo")
    return dtype != torch.float32 or not (cpus.exists() and "GenuineIntel" in cpus.read_text())


def pack(model: nn.Module, passes: Callable[[], object]) -> None:
    """Replace each `nn.Linear` and each self-attention of open_clip's own towers, in place; nothing elsewhere than on
    an x86 CPU with oneDNN, which for bfloat16 wants AVX-512 or its like.

    Args:
        passes: sends something through the model. Only what it calls is replaced: some towers (EVA, BEiT, ResNets)
            read the weight of a layer instead of calling it.
    """
    first = next(model.parameters())
    here = first.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if (
        not here
        or (first.dtype == torch.bfloat16 and not packs_bfloat16())
        or platform.machine() not in ("x86_64", "AMD64")
    ):
        return
    called = _called(model, passes)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child in called:
                setattr(parent, name, _Linear(child))
        if type(parent) is ResidualAttentionBlock and not hasattr(parent, "ln_1_kv"):  # no cross-attention
            attention = parent.attn
            if isinstance(attention, nn.MultiheadAttention) and attention in called:
                parent.attn = _SelfAttention(attention)


def _called(model: nn.Module, passes: Callable[[], object]) -> set[nn.Module]:
    found: set[nn.Module] = set()
    hooks = [module.register_forward_pre_hook(lambda module, _: found.add(module)) for module in model.modules()]
    try:
        with torch.inference_mode():
            passes()
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Linear(nn.Linear):
    """Its `weight` is opaque, and tells type and shape alone."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        del self.weight, self.bias  # no parameters any more
        self.weight = packed_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return packed_linear(x, self.weight, self.bias)

    def _save_to_state_dict(self, *_: object) -> None:
        raise ValueError("this model only encodes: load the encoder with packed=False to save or to train it")


class _SelfAttention(nn.Module):
    """`nn.MultiheadAttention` as open_clip's blocks call it: batch first, one tensor for queries, keys and values."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        width = attention.embed_dim
        joint = nn.Linear(width, 3 * width, device="meta")
        joint.weight, joint.bias = attention.in_proj_weight, attention.in_proj_bias
        self.joint, self.out = _Linear(joint), _Linear(attention.out_proj)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor, None]:
        n, length, width = x.shape
        query, key, value = self.joint(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.dim() == 3:  # one a head of each item
            attn_mask = attn_mask.view(n, self.heads, length, length)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask)
        return self.out(seen.transpose(1, 2).reshape(n, length, width)), None
