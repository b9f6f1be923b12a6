"""One optimisation step: the contrastive gradient of a global batch, exact however the batch is cut. Pure torch, no Ray.

A worker's share of the global batch goes forward in passes of at most `forward_pairs`. With one pass its graph is kept;
with more, features are cached (GradCache, Gao et al. 2021, arXiv 2101.06983): each pass runs without a graph, the loss
gives the gradient on every feature, then each pass runs again, with a graph, and takes its slice of that gradient. This
costs one more forward pass (about a third of a step) and makes the memory that of one pass: a batch of 64k fits anywhere.

Features of all workers are gathered, each worker sums the loss of its own rows against all columns, and gradients are
summed: one batch of 32 as 1x32, 2x16, 1x(4x8) or 2x(2x8) gives one gradient. Averages over workers or blocks appear
nowhere, which is where other trainers scaled gradients wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from biomedclip_ray.clip.loss import loss_from_features
from biomedclip_ray.config import Train
from biomedclip_ray.train.lengths import encode_at_natural_length, masks_padding
from biomedclip_ray.train.order import mix

MAX_LOGIT_SCALE = math.log(100)
"""CLIP's limit on the learned temperature (Radford et al. 2021)."""

BUCKET_BYTES = 64 * 1024 * 1024
"""Bytes of gradients that one all-reduce carries."""


@dataclass(frozen=True)
class Block:
    """A micro-block on the device.

    Attributes:
        pixels: uint8 (n, h, w, 3), as they travel; normalised on the device.
        tokens: int32 (n, context).
        group: int64 (n,), pairs that are not each other's negatives; negative: nobody's.
        first: position of the first pair in the training sequence; seeds dropout.
        lengths: int64 (n,) on the host, tokens of each text without padding; None: not known.
    """

    pixels: Tensor
    tokens: Tensor
    group: Tensor
    first: int
    lengths: Tensor | None = None


@dataclass(frozen=True)
class StepResult:
    """What a step measured; tensors stay on the device, so that reading them is the caller's choice of a wait.

    Attributes:
        loss: scalar, the mean over the global batch, the same on every worker.
        grad_norm: scalar, before clipping.
        logit_scale: scalar, exponentiated.
        lr: the step's learning rate.
    """

    loss: Tensor
    grad_norm: Tensor
    logit_scale: Tensor
    lr: float


class Learner:
    """Model, optimiser and schedule. State is `state_dict()`; everything else follows from config and step number."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Train,
        steps: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
    ) -> None:
        """`model` is open_clip's; `steps` the length of the schedule; `mean` and `std` of RGB in [0, 1]."""
        self.device = torch.device(device)
        self.model = model.to(self.device)
        for tower in recipe.lock:
            for parameter in tower_parameters(model, tower):
                parameter.requires_grad_(False)
        if recipe.resources.grad_checkpointing:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
        self.logit_scale = model.get_parameter("logit_scale")
        self.logit_bias = model.get_parameter("logit_bias") if recipe.loss == "sigmoid" else None
        self.trims = masks_padding(model)
        self.recipe = recipe
        self.steps = steps
        self.mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(std, device=self.device).view(1, 3, 1, 1) * 255
        self.optimizer = torch.optim.AdamW(
            param_groups(model, recipe.weight_decay), lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True
        )

    def step(self, number: int, blocks: Sequence[Block], sizes: Sequence[int] | None = None) -> StepResult:
        """One optimiser step, the `number`-th counted from 0.

        Args:
            blocks: this worker's micro-blocks, at least one.
            sizes: rows of every worker, by rank; None without a process group.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(blocks, sizes)
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        sum_over_workers(grads)
        norm = torch.nn.utils.get_total_norm(grads)
        if self.recipe.grad_clip is not None:
            scale = torch.clamp(self.recipe.grad_clip / (norm + 1e-6), max=1.0)
            torch._foreach_mul_(grads, scale)
        lr = learning_rate(number, self.recipe.lr, self.recipe.warmup_steps, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        with torch.no_grad():
            self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        return StepResult(loss, norm, self.logit_scale.detach().exp(), lr)

    def backward(self, blocks: Sequence[Block], sizes: Sequence[int] | None = None) -> Tensor:
        """Add this worker's share of the global batch's gradient to the parameters; the loss over the whole batch."""
        blocks = regroup(blocks, self.recipe.resources.forward_pairs)
        keep_graph = len(blocks) == 1
        features = []
        for block in blocks:
            with torch.set_grad_enabled(keep_graph):
                features.append(self.features(block))
        image, text, group = self._local(features, blocks)
        sizes = sizes or [len(image)]
        rank = dist.get_rank() if len(sizes) > 1 else 0
        start = sum(sizes[:rank])
        rows = slice(start, start + len(image))
        all_image = gather(image.detach(), sizes).requires_grad_()
        all_text = gather(text.detach(), sizes).requires_grad_()
        loss = loss_from_features(
            all_image, all_text, self.logit_scale.exp(), gather(group, sizes), self.logit_bias, rows=rows
        )
        loss.backward()
        assert all_image.grad is not None and all_text.grad is not None
        slopes = torch.stack([all_image.grad, all_text.grad])
        total = loss.detach().clone()
        if len(sizes) > 1:
            dist.all_reduce(slopes)
            dist.all_reduce(total)
        self._into_towers(features, blocks, slopes[:, rows], keep_graph)
        return total

    def features(self, block: Block) -> tuple[Tensor, Tensor]:
        """Unit vectors float32 (n, d) of a block's images and texts; the same random numbers each time it is asked."""
        torch.manual_seed(int(mix(self.recipe.seed, block.first)[0] >> 1))
        pixels = (block.pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            image = self.model.encode_image(pixels, normalize=True)  # type: ignore[operator]
            if self.trims and block.lengths is not None:
                text = encode_at_natural_length(self._encode_text, block.tokens.long(), block.lengths.tolist())
            else:
                text = self._encode_text(block.tokens.long())
        return image.float(), text.float()

    def _encode_text(self, tokens: Tensor) -> Tensor:
        text: Tensor = self.model.encode_text(tokens, normalize=True)  # type: ignore[operator]
        return text

    def is_finite(self) -> bool:
        """Whether every weight is a number: a step whose loss was one may have broken them."""
        return bool(torch.nn.utils.get_total_norm(list(self.model.parameters())).isfinite())

    def state_dict(self) -> dict[str, Any]:
        """Weights under open_clip's own names, and the optimiser's moments."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave. Raises RuntimeError that names missing and unexpected weights."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _local(
        self, features: Sequence[tuple[Tensor, Tensor]], blocks: Sequence[Block]
    ) -> tuple[Tensor, Tensor, Tensor]:
        image, text = (torch.cat([pair[side] for pair in features]) for side in (0, 1))
        return image, text, torch.cat([block.group for block in blocks])

    def _into_towers(
        self, features: Sequence[tuple[Tensor, Tensor]], blocks: Sequence[Block], slopes: Tensor, kept_graph: bool
    ) -> None:
        """Carry the gradient on the features, (2, rows, d), back into the parameters, block by block."""
        first = 0
        for block, cached in zip(blocks, features, strict=True):
            image, text = cached if kept_graph else self.features(block)
            stop = first + len(image)
            outputs = [(image, slopes[0, first:stop]), (text, slopes[1, first:stop])]
            moving = [(out, slope) for out, slope in outputs if out.requires_grad]  # a locked tower has no graph
            torch.autograd.backward([out for out, _ in moving], [slope for _, slope in moving])
            first = stop


def regroup(blocks: Sequence[Block], pairs: int | None) -> list[Block]:
    """A worker's blocks as forward passes of at most `pairs` pairs; None: one pass for all."""
    pixels, tokens, group = (torch.cat([getattr(b, name) for b in blocks]) for name in ("pixels", "tokens", "group"))
    known = [block.lengths for block in blocks if block.lengths is not None]
    lengths = torch.cat(known) if len(known) == len(blocks) else None
    size = pairs or len(pixels)
    return [
        Block(
            pixels[i : i + size],
            tokens[i : i + size],
            group[i : i + size],
            blocks[0].first + i // size,
            None if lengths is None else lengths[i : i + size],
        )
        for i in range(0, len(pixels), size)
    ]


def tower_parameters(model: nn.Module, tower: str) -> list[nn.Parameter]:
    """All parameters of the "image" or the "text" tower, under the names of either of open_clip's two classes."""
    other = {"logit_scale", "logit_bias"}
    image = {name for name, _ in model.named_parameters() if name.startswith("visual.")}
    names = {name for name, _ in model.named_parameters()} - other
    chosen = image if tower == "image" else names - image
    return [parameter for name, parameter in model.named_parameters() if name in chosen]


def gather(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """(n, ...) of each worker to (sum of sizes, ...), by rank; shorter workers are padded on the way. No gradient."""
    if len(sizes) == 1:
        return rows
    longest = max(sizes)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def sum_over_workers(grads: Sequence[Tensor]) -> None:
    """Sum gradients over all workers, in place, in buckets; nothing to do without a process group."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    for bucket in _buckets(grads):
        flat = torch._utils._flatten_dense_tensors(bucket)
        dist.all_reduce(flat)
        torch._foreach_copy_(bucket, list(torch._utils._unflatten_dense_tensors(flat, bucket)))


def _buckets(grads: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for grad in grads:
        bucket.append(grad)
        size += grad.numel() * grad.element_size()
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters in two groups: matrices decay; norms, biases and the logit scale (all of one dimension) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def learning_rate(number: int, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up to `peak`, then half a cosine down to 0 at `steps`."""
    if number < warmup:
        return peak * (number + 1) / warmup
    progress = (number - warmup) / max(1, steps - warmup)
    return 0.5 * peak * (1 + math.cos(math.pi * min(1.0, progress)))
