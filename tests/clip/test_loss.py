"""Every loss against a plain single-process reference in float64: value and gradient to 1e-6 (1e-12 here)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from biomedclip_ray.clip.loss import info_nce, loss_from_features, sigmoid_loss

N, D = 32, 12
KINDS = ("info_nce", "sigmoid")


def inputs(n: int = N) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    image, text = (torch.randn(n, D, generator=generator, dtype=torch.float64) for _ in range(2))
    group = torch.randint(0, n // 2 + 1, (n,), generator=generator)
    group[:3] = -1  # of no group
    return image, text, group, torch.tensor(2.3, dtype=torch.float64), torch.tensor(-4.0, dtype=torch.float64)


def reference(kind: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, group: Tensor | None) -> Tensor:
    """The textbook form, all logits at once."""
    logits = scale * image @ text.T
    own = torch.eye(len(image), dtype=torch.bool)
    masked = torch.zeros_like(own)
    if group is not None:
        masked = (group[:, None] == group[None, :]) & (group[:, None] >= 0) & ~own
    if kind == "info_nce":
        logits, target = logits.masked_fill(masked, -torch.inf), torch.arange(len(image))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    sign = own.double() * 2 - 1
    return -(F.logsigmoid(sign * (logits + bias)) * ~masked).sum() / len(image)


def ours(
    kind: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, group: Tensor | None, **more: Any
) -> Tensor:
    if kind == "info_nce":
        return info_nce(image, text, scale, group, **more)
    return sigmoid_loss(image, text, scale, bias, group, **more)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def expected(kind: str, n: int, masked: bool) -> tuple[Tensor, list[Tensor]]:
    """Value, and gradient on raw image, raw text, log scale and bias."""
    image, text, group, scale, bias = inputs(n)
    image, text, scale, bias = leaves(image, text, scale, bias)
    value = reference(
        kind, F.normalize(image, dim=-1), F.normalize(text, dim=-1), scale.exp(), bias, group if masked else None
    )
    value.backward()
    return value.detach(), [t.grad if t.grad is not None else torch.zeros_like(t) for t in (image, text, scale, bias)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block", [1, 5, 32, 1000])
def test_one_process_equals_the_reference(kind: str, masked: bool, block: int) -> None:
    image, text, group, scale, bias = inputs()
    image, text, scale, bias = leaves(image, text, scale, bias)
    value = ours(
        kind,
        F.normalize(image, dim=-1),
        F.normalize(text, dim=-1),
        scale.exp(),
        bias,
        group if masked else None,
        block=block,
    )
    value.backward()
    right, gradients = expected(kind, N, masked)
    torch.testing.assert_close(value, right, rtol=0, atol=1e-12)
    for mine, gradient in zip((image, text, scale, bias), gradients, strict=True):
        torch.testing.assert_close(
            mine.grad if mine.grad is not None else torch.zeros_like(mine), gradient, rtol=0, atol=1e-12
        )


def test_guessing_costs_the_logarithm_of_the_batch() -> None:
    same = F.normalize(torch.ones(64, 8), dim=-1)
    assert info_nce(same, same, torch.tensor(14.0)).item() == pytest.approx(torch.tensor(64.0).log().item(), abs=1e-6)


def test_the_mask_takes_look_alikes_out_of_the_negatives() -> None:
    twins = F.normalize(torch.eye(4, dtype=torch.float64)[[0, 0, 1, 2]], dim=-1)
    scale = torch.tensor(100.0, dtype=torch.float64)
    assert info_nce(twins, twins, scale).item() == pytest.approx(0.5 * torch.tensor(2.0).log().item(), abs=1e-9)
    assert info_nce(twins, twins, scale, torch.tensor([7, 7, 8, 9])).item() == pytest.approx(0.0, abs=1e-9)


def test_gradient_check() -> None:
    image, text, group, scale, bias = inputs(7)
    group = group % 3
    for kind in KINDS:
        assert torch.autograd.gradcheck(
            lambda *given, kind=kind: ours(kind, *given, group, block=3), leaves(image, text, scale, bias)
        )


def test_float32_and_autocast_are_computed_in_float32() -> None:
    image, text, group, scale, bias = inputs()
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    right = reference("info_nce", image, text, scale.exp(), bias, group)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = info_nce(image.float(), text.float(), scale.exp().float(), group)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(right.item(), abs=1e-5)


def test_a_locked_tower_asks_for_no_gradient() -> None:
    image, text, group, scale, bias = inputs()
    (text,) = leaves(text)
    info_nce(image, text, scale, group).backward()
    whole = leaves(image, inputs()[1])
    reference("info_nce", whole[0], whole[1], scale, bias, group).backward()
    assert image.grad is None and text.grad is not None and whole[1].grad is not None
    torch.testing.assert_close(text.grad, whole[1].grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("image", "group", "message"),
    [((4, 3), None, "must be the same"), ((5, 3), 4, r"group \(4,\) must be \(5,\)")],
)
def test_shapes_that_do_not_fit_are_an_error(image: tuple[int, int], group: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        info_nce(
            torch.ones(image), torch.ones(5, 3), torch.tensor(1.0), None if group is None else torch.ones(group).long()
        )


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_rows_sum_to_the_whole(kind: str) -> None:
    image, text, group, scale, bias = inputs()
    image, text = leaves(image, text)
    shares = [
        loss_from_features(
            image, text, scale, group, bias if kind == "sigmoid" else None, rows=slice(start, start + 8), block=3
        )
        for start in range(0, N, 8)
    ]
    sum(shares).backward()  # type: ignore[union-attr]
    whole = leaves(image.detach(), text.detach())
    value = reference(kind, whole[0], whole[1], scale, bias, group)
    value.backward()
    torch.testing.assert_close(sum(shares), value, rtol=0, atol=1e-12)
    torch.testing.assert_close(image.grad, whole[0].grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(text.grad, whole[1].grad, rtol=0, atol=1e-12)


def towers() -> tuple[torch.nn.Linear, torch.nn.Linear]:
    torch.manual_seed(3)
    return torch.nn.Linear(D, 6).double(), torch.nn.Linear(D, 6).double()


def parameters_of_reference(kind: str) -> tuple[Tensor, list[Tensor]]:
    image, text, group, scale, bias = inputs()
    one, two = towers()
    value = reference(kind, F.normalize(one(image), dim=-1), F.normalize(two(text), dim=-1), scale.exp(), bias, group)
    value.backward()
    return value.detach(), [p.grad for tower in (one, two) for p in tower.parameters() if p.grad is not None]


# Workers over gloo -----------------------------------------------------------------------------------------------


def _worker(rank: int, world: int, folder: str, body: Callable[[int, int], object]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(body(rank, world), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads now and then abort the interpreter's own shutdown, long after the result is written


def spawn(world: int, folder: Path, body: Callable[[int, int], object]) -> list[dict]:
    mp.spawn(_worker, args=(world, str(folder), body), nprocs=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


SIZES = {2: [[16, 16], [19, 13], [32, 0]], 4: [[8, 8, 8, 8], [11, 2, 18, 1]]}


def _losses(rank: int, world: int) -> dict[str, object]:
    """Every kind, mask and split of the rows: value, and the gradient on this worker's raw rows and on the scale."""
    found: dict[str, object] = {}
    for sizes in SIZES[world]:
        start = sum(sizes[:rank])
        rows = slice(start, start + sizes[rank])
        for kind in KINDS:
            for masked in (False, True):
                image, text, group, scale, bias = inputs()
                image, text, scale, bias = leaves(image[rows], text[rows], scale, bias)
                value = ours(
                    kind,
                    F.normalize(image, dim=-1),
                    F.normalize(text, dim=-1),
                    scale.exp(),
                    bias,
                    group[rows] if masked else None,
                    sizes=sizes if masked else None,
                    block=5,
                )
                value.backward()
                gradients = [t.grad if t.grad is not None else torch.zeros_like(t) for t in (image, text, scale, bias)]
                found[f"{sizes} {kind} {masked}"] = (value.detach(), gradients)
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_workers_with_even_and_uneven_rows_equal_the_reference(world: int, tmp_path: Path) -> None:
    results = spawn(world, tmp_path, _losses)
    for name in results[0]:
        sizes, kind, masked = name.rsplit(" ", 2)
        right, gradients = expected(kind, N, masked == "True")
        for rank in range(world):
            torch.testing.assert_close(results[rank][name][0], right, rtol=0, atol=1e-12, msg=f"{name} rank {rank}")
        for position in range(2):  # rows: what DDP's mean would divide by the number of workers
            mine = torch.cat([results[rank][name][1][position] for rank in range(world)]) / world
            torch.testing.assert_close(mine, gradients[position], rtol=0, atol=1e-12, msg=f"{name} {sizes}")
        for position in (2, 3):  # parameters that every worker holds: DDP's mean
            mine = torch.stack([results[rank][name][1][position] for rank in range(world)]).mean(0)
            torch.testing.assert_close(mine, gradients[position], rtol=0, atol=1e-12, msg=f"{name} {sizes}")


def _under_ddp(rank: int, world: int) -> dict[str, object]:
    image, text, group, scale, bias = inputs()
    rows = slice(0, 20) if rank == 0 else slice(20, 32)
    found: dict[str, object] = {}
    for kind in KINDS:
        one, two = (torch.nn.parallel.DistributedDataParallel(tower) for tower in towers())
        value = ours(
            kind,
            F.normalize(one(image[rows]), dim=-1),
            F.normalize(two(text[rows]), dim=-1),
            scale.exp(),
            bias,
            group[rows],
        )
        value.backward()
        found[kind] = (value.detach(), [p.grad for tower in (one, two) for p in tower.parameters()])
    return found


def test_ddp_leaves_the_gradient_of_the_global_batch_on_every_worker(tmp_path: Path) -> None:
    results = spawn(2, tmp_path, _under_ddp)
    for kind in KINDS:
        right, gradients = parameters_of_reference(kind)
        for result in results:
            torch.testing.assert_close(result[kind][0], right, rtol=0, atol=1e-12)
            for mine, gradient in zip(result[kind][1], gradients, strict=True):
                torch.testing.assert_close(mine, gradient, rtol=0, atol=1e-12)


def test_memory_is_linear_in_the_local_batch() -> None:
    """The largest tensor that loss and gradient make is one block of rows, not all rows."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                self.bytes = max(self.bytes, out.numel() * out.element_size())
            return out

    n = 1024
    image, text = leaves(*(F.normalize(torch.randn(n, 16), dim=-1) for _ in range(2)))
    with Largest() as largest:
        info_nce(image, text, torch.tensor(10.0), torch.arange(n), block=32).backward()
    assert 32 * n * 4 <= largest.bytes <= 32 * n * 8
