"""Every loss against a plain single-process reference in float64: value and gradient to 1e-6 (1e-12 here)."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from biomedclip_ray.clip.loss import LOSSES
from biomedclip_ray.clip.loss.contrast import loss_from_features

INFO_NCE = LOSSES["infonce"]

N, D = 32, 12
KINDS = ("infonce", "sigmoid")


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
    if kind == "infonce":
        logits, target = logits.masked_fill(masked, -torch.inf), torch.arange(len(image))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    sign = own.double() * 2 - 1
    return -(F.logsigmoid(sign * (logits + bias)) * ~masked).sum() / len(image)


def ours(
    kind: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, group: Tensor | None, **more: Any
) -> Tensor:
    loss = LOSSES[kind]
    return loss_from_features(loss, image, text, scale, group, bias if loss.needs_bias else None, **more)


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


def test_chance_costs_the_logarithm_of_the_batch() -> None:
    same = F.normalize(torch.ones(64, 8), dim=-1)
    assert loss_from_features(INFO_NCE, same, same, torch.tensor(14.0)).item() == pytest.approx(
        torch.tensor(64.0).log().item(), abs=1e-6
    )


def test_the_mask_takes_look_alikes_out_of_the_negatives() -> None:
    twins = F.normalize(torch.eye(4, dtype=torch.float64)[[0, 0, 1, 2]], dim=-1)
    scale = torch.tensor(100.0, dtype=torch.float64)
    assert loss_from_features(INFO_NCE, twins, twins, scale).item() == pytest.approx(
        0.5 * torch.tensor(2.0).log().item(), abs=1e-9
    )
    assert loss_from_features(INFO_NCE, twins, twins, scale, torch.tensor([7, 7, 8, 9])).item() == pytest.approx(
        0.0, abs=1e-9
    )


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
    right = reference("infonce", image, text, scale.exp(), bias, group)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss_from_features(INFO_NCE, image.float(), text.float(), scale.exp().float(), group)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(right.item(), abs=1e-5)


def test_a_locked_tower_asks_for_no_gradient() -> None:
    image, text, group, scale, bias = inputs()
    (text,) = leaves(text)
    loss_from_features(INFO_NCE, image, text, scale, group).backward()
    whole = leaves(image, inputs()[1])
    reference("infonce", whole[0], whole[1], scale, bias, group).backward()
    assert image.grad is None and text.grad is not None and whole[1].grad is not None
    torch.testing.assert_close(text.grad, whole[1].grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("image", "group", "message"),
    [((4, 3), None, "must be the same"), ((5, 3), 4, r"group \(4,\) must be \(5,\)")],
)
def test_shapes_that_do_not_fit_are_an_error(image: tuple[int, int], group: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_from_features(
            INFO_NCE,
            torch.ones(image),
            torch.ones(5, 3),
            torch.tensor(1.0),
            None if group is None else torch.ones(group).long(),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_rows_sum_to_the_whole(kind: str) -> None:
    image, text, group, scale, bias = inputs()
    image, text = leaves(image, text)
    shares = [
        loss_from_features(
            LOSSES[kind],
            image,
            text,
            scale,
            group,
            bias if kind == "sigmoid" else None,
            rows=slice(start, start + 8),
            block=3,
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


def test_a_loss_that_needs_a_bias_says_so() -> None:
    with pytest.raises(ValueError, match="sigmoid needs a logit_bias"):
        loss_from_features(LOSSES["sigmoid"], torch.eye(4), torch.eye(4), torch.tensor(1.0))


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
        loss_from_features(INFO_NCE, image, text, torch.tensor(10.0), torch.arange(n), block=32).backward()
    assert 32 * n * 4 <= largest.bytes <= 32 * n * 8
