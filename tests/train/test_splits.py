"""The trainer's own gradient in float64, however a global batch is cut over workers, blocks and passes: that of one
plain process.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from open_clip import CustomTextCLIP
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parent))
from test_parallel import CONTEXT, SIDE, TOWERS
from test_step import N, recipe

from biomedclip_ray.train.step import Block, Learner
from tests.clip.test_loss import reference

MEAN, STD = (0.5,) * 3, (0.25,) * 3
LOSSES = ("infonce", "sigmoid")
# blocks of each worker, pairs in a pass: a batch of 32 as 1x32, 1x(4x8), 2x16, 2x(2x8), ..., and uneven
SPLITS = {
    1: [([1], 32), ([4], 8), ([2], 5)],
    2: [([1, 1], 16), ([2, 2], 8), ([3, 1], 8), ([3, 1], 32)],
    4: [([1, 1, 1, 1], 8), ([2, 2, 2, 2], 4), ([3, 2, 2, 1], 4)],
}
Gradients = dict[str, Tensor]


def model() -> nn.Module:
    """The same weights in float64 whatever the default is."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(3)
    made = CustomTextCLIP(**{key: value for key, value in TOWERS.items() if key != "custom_text"}).double()
    torch.set_default_dtype(default)
    return made


def batch() -> Block:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.arange(N) % 12 + 3
    tokens = torch.randint(3, 150, (N, CONTEXT), generator=draw, dtype=torch.int32)
    tokens[torch.arange(N), lengths - 1] = 2  # the end
    tokens[torch.arange(CONTEXT) >= lengths[:, None]] = 0
    pixels = torch.randint(0, 256, (N, SIDE, SIDE, 3), generator=draw, dtype=torch.uint8)
    return Block(pixels, tokens, torch.tensor([5, 5, 7, 9, 7] + [-1] * (N - 5)), 0, lengths)


def shares(counts: list[int]) -> Iterator[list[Block]]:
    """The blocks of each worker, in the batch's order."""
    whole, size, first = batch(), N // sum(counts), 0
    assert whole.lengths is not None
    for count in counts:
        parts = [slice(first + i * size, first + (i + 1) * size) for i in range(count)]
        first += count * size
        yield [Block(whole.pixels[p], whole.tokens[p], whole.group[p], p.start, whole.lengths[p]) for p in parts]


@functools.cache
def plain(loss: str) -> tuple[Tensor, Gradients]:
    """Loss and gradients of the whole batch by autograd alone, the loss in its textbook form."""
    one, whole = model(), batch()
    pixels = (whole.pixels.permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.25
    image = one.encode_image(pixels, normalize=True)
    text = one.encode_text(whole.tokens.long(), normalize=True)
    value = reference(loss, image, text, one.logit_scale.exp(), one.logit_bias, whole.group)
    value.backward()
    return value.detach(), {name: p.grad for name, p in one.named_parameters() if p.grad is not None}


def cases(world: int) -> Iterator[tuple[str, dict[str, object], list[int], int]]:
    """Loss, changes of the recipe, blocks of each worker, pairs in a pass."""
    for loss in LOSSES:
        for counts, pairs in SPLITS[world]:
            yield loss, {}, counts, pairs
        counts, pairs = SPLITS[world][1]  # cached features
        yield loss, {"grad_checkpointing": True}, counts, pairs
        for lock in ("image", "text"):
            yield loss, {"lock": (lock,)}, counts, pairs
        if world > 1:
            for lock in ((), ("image",), ("text",)):
                yield loss, {"lock": lock, "shard": True}, counts, pairs
            uneven, pairs = SPLITS[world][2]
            yield loss, {"shard": True}, uneven, pairs


def gradients(world: int, rank: int) -> list[tuple[Tensor, Gradients]]:
    """What the trainer's own class leaves on this worker, case after case."""
    found = []
    for loss, changes, counts, pairs in cases(world):
        resources = {"forward_pairs": pairs, **{key: value for key, value in changes.items() if key != "lock"}}
        one = Learner(model(), recipe(loss=loss, lock=changes.get("lock", ()), resources=resources), 10, MEAN, STD)
        assert bool(changes.get("shard")) == any(isinstance(p, DTensor) for p in one.model.parameters())
        sizes = [count * N // sum(counts) for count in counts]
        if len(set(sizes)) > 1:  # twice: DDP rearranges its buckets after the first, all workers together
            one.backward(list(shares(counts))[rank], sizes)
            one.towers.zero_grad(set_to_none=True)
        value = one.backward(list(shares(counts))[rank], sizes)
        grads = {name: p.grad for name, p in one.model.named_parameters() if p.grad is not None}
        found.append((value, {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in grads.items()}))
    return found


def _worker(rank: int, folder: str) -> None:
    """Four workers, then the first two of them, then one: processes take longer to start than the cases to compute."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]  # what is float32 in the trainer is float64 here
    for world in sorted(SPLITS, reverse=True):
        if rank < world:
            meet = f"file://{folder}/meet-{world}"
            torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
            torch.save(gradients(world, rank), f"{folder}/{world}-{rank}.pt")
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads now and then abort the interpreter's own shutdown, long after the result is written


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("splits")
    mp.spawn(_worker, (str(folder),), nprocs=max(SPLITS))
    return folder


@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_split_over_workers_blocks_and_passes_gives_the_gradient_of_one_plain_process(world, trained):
    ranks = [torch.load(trained / f"{world}-{rank}.pt") for rank in range(world)]
    for number, (loss, changes, counts, pairs) in enumerate(cases(world)):
        value, grads = plain(loss)
        locked = {"image": ("visual.",), "text": ("text.",), None: ()}[next(iter(changes.get("lock", ())), None)]
        moving = {name: grad for name, grad in grads.items() if not name.startswith(locked)}
        assert len(moving) > 10
        for rank in range(world):
            told = f"{loss} {changes} {counts} blocks, passes of {pairs}, rank {rank}"
            ours_value, ours = ranks[rank][number]
            assert ours_value.dtype == torch.float64
            torch.testing.assert_close(ours_value, value, rtol=1e-12, atol=0, msg=told)
            assert ours.keys() == moving.keys(), told
            for name, grad in moving.items():
                torch.testing.assert_close(ours[name], grad, rtol=1e-9, atol=1e-12, msg=f"{told}: {name}")
