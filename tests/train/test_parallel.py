"""DDP, FSDP2 and one process train the same model, and read each other's checkpoints."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from open_clip import CustomTextCLIP
from ray.train import Checkpoint
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parent))
from test_step import N, cut, recipe

from biomedclip_ray.clip.folder import clean_names
from biomedclip_ray.train import checkpoint
from biomedclip_ray.train.step import Block, Learner

TOWERS = {**json.loads(Path(__file__).with_name("tiny_model.json").read_text()), "init_logit_bias": -10.0}
TOWERS["vision_cfg"]["layers"] = 2
SIDE, CONTEXT, STEPS = 16, 16, 6


def learner(**changes: object) -> Learner:
    torch.manual_seed(3)
    model = CustomTextCLIP(**{key: value for key, value in TOWERS.items() if key != "custom_text"})
    return Learner(model, recipe(ema=0.9, **changes), STEPS, (0.5,) * 3, (0.25,) * 3)


def batch(seed: int) -> Block:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 150, (N, CONTEXT), generator=draw, dtype=torch.int32)
    tokens[:, 9] = 2
    tokens[:, 10:] = 0
    pixels = torch.randint(0, 256, (N, SIDE, SIDE, 3), generator=draw, dtype=torch.uint8)
    return Block(pixels, tokens, torch.full((N,), -1), first=seed * N)


def run(one: Learner, first: int, last: int, rank: int = 0, world: int = 1) -> list[float]:
    losses = []
    for number in range(first, last):
        blocks = cut(batch(number), 4)[rank::world]
        losses.append(float(one.step(number, blocks, [N // world] * world).loss))
    return losses


def _worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    root = Path(folder)
    for shard in (False, True):
        resources = {"forward_pairs": 8, "shard": shard, "workers": world}
        one = learner(resources=resources)
        assert shard == any(isinstance(p, DTensor) for p in one.model.parameters())
        losses = run(one, 0, 3, rank, world)
        name = "sharded" if shard else "whole"
        mine = root / f"{name}-{rank}"
        mine.mkdir()
        checkpoint.save(mine, one, {"step": 3}, rank)
        torch.distributed.barrier()
        if rank == 0:
            together(root, name, world)
        torch.distributed.barrier()
        other = learner(resources={**resources, "shard": not shard})
        checkpoint.restore(Checkpoint.from_directory(root / name), other)
        losses += run(other, 3, STEPS, rank, world)
        torch.save(losses, root / f"{name}-{rank}.pt")
    torch.save(stages(rank, world), root / f"stages-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def stages(rank: int, world: int) -> dict[str, object]:
    """Four steps of a sharded tower whose blocks hold blocks, with a bias."""
    torch.manual_seed(3)
    towers = {key: value for key, value in TOWERS.items() if key != "custom_text"}
    towers["vision_cfg"] = {
        "timm_model_name": "test_convnext",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 160,
    }
    changes = {"loss": "sigmoid", "resources": {"shard": True, "workers": world}}
    one = Learner(CustomTextCLIP(**towers), recipe(**changes), STEPS, (0.5,) * 3, (0.25,) * 3)
    losses = []
    for number in range(4):
        block = batch(number)
        pixels = block.pixels.repeat_interleave(10, 1).repeat_interleave(10, 2)
        whole = Block(pixels, block.tokens, block.group, block.first)
        losses.append(float(one.step(number, cut(whole, 4)[rank::world], [N // world] * world).loss))
    hooks = one.model.get_parameter("logit_bias")._backward_hooks
    return {
        "losses": losses,
        "hooks": len(hooks or ()),
        "sharded": sum(isinstance(p, DTensor) for p in one.trained.values()),
    }


def together(root: Path, name: str, world: int) -> None:
    """What Ray does with the parts that the workers report."""
    for rank in range(world):
        for file in (root / f"{name}-{rank}").rglob("*"):
            if file.is_file():
                target = root / name / file.relative_to(root / f"{name}-{rank}")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("parallel")
    mp.spawn(_worker, (2, str(root)), nprocs=2)
    return root


def test_a_tower_of_stages_is_sharded_and_a_bias_gathers_no_hooks(trained):
    first, second = (torch.load(trained / f"stages-{rank}.pt") for rank in range(2))
    assert first == second
    assert first["sharded"] > 20
    assert first["hooks"] == 0
    assert len(set(first["losses"])) == 4 and all(map(math.isfinite, first["losses"]))


@pytest.mark.parametrize("name", ["whole", "sharded"])
def test_two_workers_sharded_or_not_learn_what_one_learns_across_a_change_of_both(trained, name):
    """Three steps one way, a checkpoint, three steps the other way."""
    losses = [torch.load(trained / f"{name}-{rank}.pt") for rank in range(2)]
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(run(learner(), 0, STEPS), rel=2e-5)


def test_one_process_reads_what_a_sharded_run_wrote(trained):
    alone = learner()
    run(alone, 0, 3)
    resumed = learner()
    assert checkpoint.restore(Checkpoint.from_directory(trained / "sharded"), resumed) == {"step": 3}
    for one, other in ((alone.ema, resumed.ema), (alone.model.state_dict(), resumed.model.state_dict())):
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=2e-5, msg=name)
    assert run(resumed, 3, STEPS) == pytest.approx(run(alone, 3, STEPS), rel=2e-5)


@pytest.mark.parametrize("name", ["whole", "sharded"])
def test_a_bundle_is_made_of_the_averaged_weights_under_their_own_names(trained, name):
    alone = learner()
    run(alone, 0, 3)
    found = checkpoint.weights(trained / name, learner().model)
    assert found.keys() == clean_names(alone.model.state_dict()).keys()
    for key, value in alone.ema.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=2e-5, msg=key)
    moved = max(float((alone.ema[key] - alone.trained[key]).abs().max()) for key in alone.ema)
    assert moved > 1e-4
