"""Packed towers give the vectors of plain ones, and are what an encoder holds on a CPU."""

from __future__ import annotations

import copy
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import nn

from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.clip.packing import pack, packs_images

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="packs on x86 only")

VISION = {"image_size": 64, "patch_size": 16, "layers": 2, "width": 64, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 100, "width": 64, "heads": 4, "layers": 2}


def timm(name: str, size: int, pool: str) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_pool": pool, "timm_proj": "linear", "image_size": size}


TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (VISION, TEXT),
    "quick gelu, pooled by average": ({**VISION, "pool_type": "avg"}, TEXT),
    "own attention": ({**VISION, "block_type": "custom", "qk_norm": True}, TEXT),
    "layer scale": ({**VISION, "ls_init_value": 0.1}, TEXT),
    "timm": (timm("vit_tiny_patch16_224", 224, "token"), TEXT),
    "timm ConvNeXt": (timm("convnext_atto", 64, "avg"), TEXT),
    "timm Swin, which reads the weight of a layer": (timm("swinv2_tiny_window8_256", 256, "avg"), TEXT),
    "ResNet": ({"image_size": 64, "layers": (1, 1, 1, 1), "width": 16, "head_width": 64}, TEXT),
    "attentional pooler": (
        {**VISION, "attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 4},
        TEXT,
    ),
    "not causal": (VISION, {**TEXT, "no_causal_mask": True, "pool_type": "last"}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TOWERS)
def test_vectors_are_those_of_the_plain_towers(name: str, dtype: torch.dtype) -> None:
    vision, text = TOWERS[name]
    size = vision["image_size"]
    torch.manual_seed(0)
    plain = open_clip.CLIP(32, vision, text, quick_gelu=name.startswith("quick")).eval().to(dtype)
    packed = copy.deepcopy(plain)
    images, tokens = torch.randn(5, 3, size, size, dtype=dtype), torch.randint(1, 99, (5, 16))
    pack(packed, lambda: (packed.encode_image(images[:1]), packed.encode_text(tokens[:1])))
    for tower in (packed.visual, packed.transformer):
        replaced = any("packing" in type(module).__module__ for module in tower.modules())
        assert replaced is can_pack(dtype) or name == "ResNet"
    least = 1 - 1e-6 if dtype == torch.float32 else 0.995
    with torch.inference_mode():
        for count in (1, 5):
            for encode, given in (("encode_image", images[:count]), ("encode_text", tokens[:count])):
                one, other = (getattr(model, encode)(given).float() for model in (plain, packed))
                assert nn.functional.cosine_similarity(one, other).min() > least, encode


def can_pack(dtype: torch.dtype) -> bool:
    """A CPU with AVX2 alone packs no bfloat16, and encodes with it all the same."""
    return dtype != torch.bfloat16 or torch.backends.cpu.get_cpu_capability() != "AVX2"


def test_an_encoder_packs_what_gains_on_this_cpu(folder: Path) -> None:
    cpu = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    assert packs_images(torch.float32) is ("GenuineIntel" not in cpu) and packs_images(torch.bfloat16)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = Encoder.load(folder, "cpu", precision=precision).model
        packed = [
            any("packing" in type(module).__module__ for module in tower.modules())
            for tower in (model.visual, model.text)
        ]
        assert packed == [packs_images(dtype) and can_pack(dtype), can_pack(dtype)]


def test_a_mask_for_each_head_of_each_text_is_kept() -> None:
    torch.manual_seed(0)
    block = ResidualAttentionBlock(32, 4).eval()
    x = torch.randn(3, 7, 32)
    mask = torch.zeros(12, 7, 7).masked_fill(torch.rand(12, 7, 7) < 0.3, float("-inf"))
    mask[:, :, 0] = 0
    with torch.inference_mode():
        plain = block(x, attn_mask=mask)
        pack(block, lambda: block(x, attn_mask=mask))
        np.testing.assert_allclose(block(x, attn_mask=mask).numpy(), plain.numpy(), atol=1e-5)


def test_attention_from_one_sequence_to_another_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    block = ResidualAttentionBlock(32, 4, is_cross_attention=True).eval()
    x, other = torch.randn(3, 7, 32), torch.randn(3, 5, 32)
    with torch.inference_mode():
        plain = block(x, other, other)
        pack(block, lambda: block(x, other, other))
        np.testing.assert_allclose(block(x, other, other).numpy(), plain.numpy(), atol=1e-5)
    assert isinstance(block.attn, nn.MultiheadAttention)


def test_a_packed_model_is_not_saved_as_if_it_were_whole() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    pack(model, lambda: model(torch.zeros(1, 4)))
    with pytest.raises(ValueError, match="packed=False"):
        model.state_dict()
