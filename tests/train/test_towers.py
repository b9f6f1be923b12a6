"""Compiled blocks, dropped patches and parameters nobody asks for: other ways to run the same model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import CustomTextCLIP
from ray.train import Checkpoint
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from test_parallel import SIDE, TOWERS, batch
from test_step import cut, recipe

from biomedclip_ray.clip.folder import clean_names
from biomedclip_ray.config import ConfigError
from biomedclip_ray.train import checkpoint, flops
from biomedclip_ray.train.step import Learner
from biomedclip_ray.train.towers import PatchDropout, repeated_blocks

STEPS = 10


def clip(timm: bool = False) -> nn.Module:
    torch.manual_seed(3)
    config = json.loads(json.dumps({key: value for key, value in TOWERS.items() if key != "custom_text"}))
    if timm:
        config["vision_cfg"] = {
            "timm_model_name": "test_vit",
            "timm_model_pretrained": False,
            "timm_pool": "token",
            "timm_proj": "linear",
            "image_size": 160,
        }
    return CustomTextCLIP(**config)


def learner(model: nn.Module | None = None, **changes: object) -> Learner:
    return Learner(model or clip(), recipe(**changes), STEPS, (0.5,) * 3, (0.25,) * 3)


def tokens_seen(one: Learner, block: nn.Module) -> list[int]:
    """Image tokens that reach a block of the image tower, noted at each of its calls."""
    seen: list[int] = []
    block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    return seen


def test_a_compiled_model_learns_the_same_keeps_its_names_and_goes_on_as_a_plain_one_and_back(tmp_path):
    plain, compiled = learner(), learner(resources={"compile": True})
    assert len(list(repeated_blocks(compiled.model))) == 2  # the text tower's one block is no repetition

    def losses(one: Learner, first: int) -> list[float]:
        return [float(one.step(number, cut(batch(number), 2)).loss) for number in range(first, first + 3)]

    def handed_over(one: Learner, other: Learner) -> None:
        checkpoint.save(tmp_path, one, {"step": 3}, rank=0)
        checkpoint.restore(Checkpoint.from_directory(tmp_path), other)

    assert losses(compiled, 0) == pytest.approx(losses(plain, 0), rel=1e-4)
    going_on = learner()
    handed_over(compiled, going_on)
    expected = losses(plain, 3)
    assert losses(going_on, 3) == pytest.approx(expected, rel=1e-4)
    before = learner()
    losses(before, 0)
    handed_over(before, compiled)
    assert losses(compiled, 3) == pytest.approx(expected, rel=1e-4)
    assert (
        compiled.model.state_dict().keys()
        == clip().state_dict().keys()
        == clean_names(compiled.model.state_dict()).keys()
    )


@pytest.mark.parametrize("timm", [False, True])
def test_half_of_the_patches_are_left_out_but_in_the_last_epoch(timm):
    model = clip(timm)
    one = learner(model, patch_dropout=0.5, epochs=2)
    visual = model.visual
    seen = tokens_seen(one, visual.trunk.blocks[0] if timm else visual.transformer.resblocks[0])
    side = 160 if timm else SIDE
    patches = (160 // 16) ** 2 if timm else (16 // 8) ** 2
    block = batch(0)
    pixels = torch.randint(0, 256, (4, side, side, 3), dtype=torch.uint8)
    few = type(block)(pixels, block.tokens[:4], block.group[:4], 0)
    first, again = (one.step(0, [few]) for _ in range(2))
    assert first.loss.isfinite() and again.loss.isfinite()
    one.step(STEPS // 2 - 1, [few])
    one.step(STEPS // 2, [few])
    assert seen == [patches // 2 + 1] * 3 + [patches + 1]


def test_the_same_patches_are_left_out_when_features_are_computed_again():
    one = learner(patch_dropout=0.5, epochs=2)
    one.towers.train()
    first, second = one.features(batch(0)), one.features(batch(0))
    assert torch.equal(first.image, second.image)
    assert not torch.equal(first.image, one.features(batch(1)).image)


def test_a_tower_without_patches_cannot_drop_them():
    model = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        text_cfg={"context_length": 16, "vocab_size": 200, "width": 32, "heads": 2, "layers": 1},
    )
    with pytest.raises(ConfigError, match="train.patch_dropout needs patches: the image tower ModifiedResNet has none"):
        PatchDropout(model, 0.5)


def test_what_no_vector_depends_on_is_left_as_it_is(caplog):
    model = clip()
    model.text.register_parameter("nobody_asks", nn.Parameter(torch.ones(3)))
    with caplog.at_level("INFO"):
        one = learner(model)
    assert "no vector depends on text.nobody_asks" in caplog.text
    assert "text.nobody_asks" not in one.trained and "visual.proj" in one.trained


def test_a_gradient_that_is_no_number_changes_nothing_and_is_counted():
    one, undisturbed = learner(ema=0.5), learner(ema=0.5)
    one.step(0, cut(batch(0), 2))
    undisturbed.step(0, cut(batch(0), 2))
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    average = {name: value.clone() for name, value in one.ema.items()}
    bad = cut(batch(1), 2)
    one.model.visual.register_forward_hook(lambda *_: _[2] * (float("nan") if bad else 1.0))
    result = one.step(1, bad)
    assert not result.loss.isfinite() and int(result.skipped) == 1
    assert all(torch.equal(value, before[name]) for name, value in one.model.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in one.ema.items())
    bad.clear()
    result = one.step(2, cut(batch(2), 2))
    expected = undisturbed.step(2, cut(batch(2), 2))
    assert int(result.skipped) == 1 and float(result.loss) == float(expected.loss)
    for name, value in undisturbed.model.state_dict().items():
        assert torch.equal(one.model.state_dict()[name], value), name


def test_batch_statistics_move_with_the_training_of_their_tower_alone():
    for lock in ((), ("image",)):
        torch.manual_seed(3)
        towers = {**TOWERS, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}
        towers.pop("custom_text")
        model = CustomTextCLIP(**towers)
        before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
        one = learner(model, lock=lock)
        after = dict(model.named_buffers())
        assert before and all(torch.equal(after[name], value) for name, value in before.items())  # counting FLOPs
        block = batch(0)
        one.step(
            0, [type(block)(torch.randint(0, 256, (32, 32, 32, 3), dtype=torch.uint8), block.tokens, block.group, 0)]
        )
        after = dict(model.named_buffers())
        assert all(torch.equal(after[name], value) == bool(lock) for name, value in before.items())


def test_a_pass_that_comes_again_moves_batch_statistics_once():
    """Features are cached without a graph, then computed again with one."""
    moved = []
    for pairs in (None, 16):
        torch.manual_seed(3)
        towers = {**TOWERS, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}
        towers.pop("custom_text")
        one = learner(CustomTextCLIP(**towers), resources={"forward_pairs": pairs})
        block = batch(0)
        pixels = torch.randint(0, 256, (32, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        one.step(0, [type(block)(pixels, block.tokens, block.group, 0)])
        counts = {int(value) for name, value in one.model.named_buffers() if name.endswith("num_batches_tracked")}
        moved.append(counts)
    assert moved == [{1}, {2}]
    assert one.is_finite()
    next(value for name, value in one.model.named_buffers() if name.endswith("running_var"))[0] = float("nan")
    assert not one.is_finite()


def test_flops_are_those_of_the_formula():
    towers = {"width": 64, "layers": 3}
    model = open_clip.CLIP(
        embed_dim=64,
        vision_cfg={"image_size": 64, "patch_size": 8, "head_width": 32, **towers},
        text_cfg={"context_length": 32, "vocab_size": 200, "heads": 2, **towers},
    )
    patches, width = 65, 64
    block = 2 * 12 * patches * width**2 + 4 * patches**2 * width
    found = flops.count(model, (64, 64), 32, trims=False)
    assert found.image == 3 * block + 2 * 64 * (3 * 8 * 8) * width + 2 * width * 64
    assert found.text(32) == 3 * (2 * 12 * 32 * width**2 + 4 * 32**2 * width) + 2 * width * 64


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("Tesla T4", None),
    ],
)
def test_a_device_has_the_peak_of_its_data_sheet_or_none(name, value):
    assert flops.peak_of(name) == value


def test_a_step_counts_what_its_pairs_need():
    one = learner(lock=("image",))
    one.step(0, cut(batch(0), 2))
    assert one.work == pytest.approx(32 * (one.flops.image + 3 * one.flops.text(16)))
    shares = one.laps.read()
    assert set(shares) == {"forward", "loss", "backward", "optimizer"} and all(v > 0 for v in shares.values())
