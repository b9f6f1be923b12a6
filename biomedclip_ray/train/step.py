"""One optimisation step: the contrastive gradient of a global batch, exact however the batch is cut. Pure torch, no
Ray.

A worker's share of the global batch goes forward in passes of at most `forward_pairs`, as many on every worker as the
largest share needs: the collectives of DDP and FSDP come with the passes. With one pass its graph is kept; with more,
features are cached (GradCache, Gao et al. 2021, arXiv 2101.06983): each pass runs without a graph, the loss gives the
gradient on every feature, then each pass runs again, with a graph, and takes its slice of that gradient. This costs one
more forward pass (about a third of a step) and makes the memory that of one pass: a batch of 64k fits anywhere.

Features of all workers are gathered, each worker sums the loss of its own rows against all columns, and gradients are
summed: one batch of 32 as 1x32, 2x16, 1x(4x8) or 2x(2x8) gives one gradient. DDP and FSDP average, so what enters the
towers is scaled by the number of workers once, in `_into_towers`, and nowhere else; that is where other trainers went
wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from biomedclip_ray.clip.loss import LOSSES
from biomedclip_ray.clip.loss.contrast import gather, loss_from_features
from biomedclip_ray.config import Train
from biomedclip_ray.train import flops, parallel
from biomedclip_ray.train.laps import Laps
from biomedclip_ray.train.order import mix
from biomedclip_ray.train.towers import (
    PatchDropout,
    Towers,
    Vectors,
    compile_blocks,
    leave_out_unused,
    lock,
    passing_by,
    running_norms,
)

MAX_LOGIT_SCALE = math.log(100)
"""CLIP's limit on the learned temperature (Radford et al. 2021)."""


@dataclass(frozen=True)
class Block:
    """A micro-batch on the device.

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
        skipped: scalar, steps of this learner whose gradient was not finite and that changed nothing.
        lr: the step's learning rate.
    """

    loss: Tensor
    grad_norm: Tensor
    logit_scale: Tensor
    skipped: Tensor
    lr: float


class Learner:
    """Model, optimiser and schedule. What changes is in the model, the optimiser and `ema`; the rest follows from
    config and step number.

    Attributes:
        model: open_clip's, under its own names whatever was compiled or wrapped.
        ema: the average of each trained parameter over the steps, by name; empty without train.ema.
        laps: where the time of a step goes.
        work: FLOPs that this worker's pairs have needed so far, padding and repeated passes not counted.
    """

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
        self.recipe = recipe
        self.steps = steps
        self.laps = Laps(self.device)
        self.model = model.to(self.device)
        for tower in recipe.lock:
            lock(model, tower)
        self.loss = LOSSES[recipe.loss]
        if not self.loss.needs_bias and getattr(model, "logit_bias", None) is not None:
            model.get_parameter("logit_bias").requires_grad_(False)
        if recipe.resources.grad_checkpointing:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
        towers = Towers(model, mean, std, recipe.precision == "bf16", recipe.lock).to(self.device)
        leave_out_unused(towers)
        self.trims = towers.trims
        self.norms = [norm for _, norm in running_norms(model)]
        self.flops = flops.count(model, towers.size, towers.context, towers.trims)  # of whole images
        self.patch_dropout = PatchDropout(model, recipe.patch_dropout) if recipe.patch_dropout else None
        self.work = 0.0
        if recipe.resources.compile:
            compile_blocks(model)
        self.towers = parallel.wrap(towers, recipe.resources.shard)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.trained.items()} if recipe.ema else {}
        self.optimizer = torch.optim.AdamW(
            param_groups(self.trained.values(), recipe.weight_decay),
            lr=recipe.lr,
            betas=recipe.betas,
            eps=recipe.eps,
            fused=True,
        )
        self.skipped = torch.zeros((), device=self.device)

    def step(self, number: int, blocks: Sequence[Block], sizes: Sequence[int] | None = None) -> StepResult:
        """One optimiser step, the `number`-th counted from 0. A gradient that is not finite changes nothing.

        Args:
            blocks: this worker's micro-batchs, at least one.
            sizes: rows of every worker, by rank; None without a process group.
        """
        self.towers.train()
        self.optimizer.zero_grad(set_to_none=True)
        if self.patch_dropout is not None:
            self.patch_dropout.turn(number < self._thinned_steps())
        self.laps.begin()
        loss = self.backward(blocks, sizes)
        grads = [p.grad for p in self.trained.values() if p.grad is not None]
        norm = parallel.total_norm(grads)
        if self.recipe.grad_clip is not None:
            parallel.scale_(grads, torch.clamp(self.recipe.grad_clip / (norm + 1e-6), max=1.0))
        lr = learning_rate(number, self.recipe.lr, self.recipe.warmup_steps, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.work += sum(self._cost(block, number) for block in blocks)
        self._update(number, (~(norm + loss).isfinite()).float())
        self.laps.lap("optimizer")
        return StepResult(loss, norm, self.model.get_parameter("logit_scale").detach().exp(), self.skipped, lr)

    def backward(self, blocks: Sequence[Block], sizes: Sequence[int] | None = None) -> Tensor:
        """Add the gradient of the global batch to the parameters; the loss over the whole batch."""
        sizes = sizes or [sum(len(block.pixels) for block in blocks)]
        blocks = regroup(blocks, -(-max(sizes) // (self.recipe.resources.forward_pairs or max(sizes))))
        keep_graph = len(blocks) == 1
        with nullcontext() if keep_graph else torch.no_grad(), passing_by([] if keep_graph else self.norms):
            cached = [self.features(block) for block in blocks]
        self.laps.lap("forward")
        image, text = (torch.cat([getattr(vectors, side) for vectors in cached]) for side in ("image", "text"))
        group = torch.cat([block.group for block in blocks])
        start = sum(sizes[: dist.get_rank()]) if len(sizes) > 1 else 0
        rows = slice(start, start + len(image))
        all_image = gather(image.detach(), sizes).requires_grad_()
        all_text = gather(text.detach(), sizes).requires_grad_()
        scale = cached[0].scale.detach().requires_grad_()
        bias = None
        if self.loss.needs_bias:
            assert cached[0].bias is not None  # a model without one was refused
            bias = cached[0].bias.detach().requires_grad_()
        loss = loss_from_features(self.loss, all_image, all_text, scale, gather(group, sizes), bias, rows=rows)
        loss.backward()
        assert all_image.grad is not None and all_text.grad is not None
        slopes = torch.stack([all_image.grad, all_text.grad])
        total = loss.detach().clone()
        if len(sizes) > 1:
            dist.all_reduce(slopes)
            dist.all_reduce(total)
        self.laps.lap("loss")
        self._into_towers(blocks, cached, slopes[:, rows], (scale.grad, None if bias is None else bias.grad))
        self.laps.lap("backward")
        return total

    def features(self, block: Block) -> Vectors:
        """A block's vectors; the same random numbers each time it is asked."""
        torch.manual_seed(int(mix(self.recipe.seed, block.first)[0] >> 1))
        lengths = None if block.lengths is None else block.lengths.tolist()
        vectors: Vectors = self.towers(block.pixels, block.tokens, lengths)
        return vectors

    def is_finite(self) -> bool:
        """Whether every weight, average and batch statistic is a number: a step whose loss was one may have broken
        them.
        """
        statistics = [value for norm in self.norms for value in norm.buffers() if value.is_floating_point()]
        values = [p.detach() for p in self.model.parameters()] + list(self.ema.values()) + statistics
        return bool(parallel.total_norm(values).isfinite())

    def _cost(self, block: Block, number: int) -> float:
        """FLOPs of training on a block; a locked tower goes forward only."""
        image = self.flops.image * len(block.pixels)
        if self.patch_dropout is not None and number < self._thinned_steps():
            image *= 1 - self.patch_dropout.share
        lengths = [block.tokens.shape[1]] * len(block.pixels)
        if self.trims and block.lengths is not None:
            lengths = block.lengths.tolist()
        text = sum(map(self.flops.text, lengths))
        image_passes, text_passes = (1 if side in self.recipe.lock else flops.TRAINING for side in ("image", "text"))
        return image_passes * image + text_passes * text

    def _thinned_steps(self) -> float:
        """Steps before the last `patch_dropout_off_epochs`."""
        return self.steps * (1 - self.recipe.patch_dropout_off_epochs / self.recipe.epochs)

    def _into_towers(
        self,
        blocks: Sequence[Block],
        cached: Sequence[Vectors],
        slopes: Tensor,
        scalars: tuple[Tensor | None, Tensor | None],
    ) -> None:
        """Carry the gradient on the vectors, (2, rows, d), back into the parameters, pass by pass; the workers'
        gradients meet in the last one. `scalars`: this worker's part of the gradient on scale and bias.
        """
        world = parallel.world_size()
        first = 0
        for number, block in enumerate(blocks):
            last = number == len(blocks) - 1
            with nullcontext() if last else parallel.accumulating(self.towers):
                vectors = cached[0] if len(blocks) == 1 else self.features(block)
                stop = first + len(vectors.image)
                outputs = [(vectors.image, slopes[0, first:stop]), (vectors.text, slopes[1, first:stop])]
                for scalar, slope in zip(vectors[2:], scalars, strict=True):
                    if last and scalar is not None and slope is not None:
                        outputs.append((scalar, slope))
                moving = [
                    (out, slope * world) for out, slope in outputs if out.requires_grad
                ]  # a locked tower's do not
                if moving:
                    torch.autograd.backward([out for out, _ in moving], [slope for _, slope in moving])
            first = stop
        parallel.average_scalars(self.towers)

    @torch.no_grad()
    def _update(self, number: int, broken: Tensor) -> None:
        """Move the weights, unless `broken` is 1; decided on the device, so that nothing waits."""
        self.optimizer.found_inf = broken  # type: ignore[attr-defined]  # what torch's own GradScaler sets
        self.optimizer.step()
        self.skipped = self.skipped + broken
        self.model.get_parameter("logit_scale").clamp_(0, MAX_LOGIT_SCALE)
        if self.recipe.ema is not None:
            decay = min(self.recipe.ema, (1 + number) / (10 + number))  # the start weighs little in a short run
            parallel.lerp_(list(self.ema.values()), list(self.trained.values()), (1 - decay) * (1 - broken))


def regroup(blocks: Sequence[Block], passes: int) -> list[Block]:
    """A worker's blocks as so many forward passes of about equal size, none of them empty."""
    pixels, tokens, group = (torch.cat([getattr(b, name) for b in blocks]) for name in ("pixels", "tokens", "group"))
    known = [block.lengths for block in blocks if block.lengths is not None]
    lengths = torch.cat(known) if len(known) == len(blocks) else None
    edges = [len(pixels) * number // passes for number in range(passes + 1)]
    return [
        Block(
            pixels[begin:end],
            tokens[begin:end],
            group[begin:end],
            blocks[0].first + number,
            None if lengths is None else lengths[begin:end],
        )
        for number, (begin, end) in enumerate(itertools.pairwise(edges))
        if begin < end
    ]


def param_groups(trained: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters in groups: matrices decay; norms, biases and the temperature (at most one dimension) do not.

    The numbers, which FSDP leaves whole beside its shards, are a group of their own: a fused update takes one kind.
    """
    by_ndim: dict[int, list[nn.Parameter]] = {2: [], 1: [], 0: []}
    for parameter in trained:
        by_ndim[min(parameter.ndim, 2)].append(parameter)
    return [
        {"params": params, "weight_decay": weight_decay if ndim == 2 else 0.0}
        for ndim, params in by_ndim.items()
        if params
    ]


def learning_rate(number: int, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up to `peak`, then half a cosine down to 0 at `steps`."""
    if number < warmup:
        return peak * (number + 1) / warmup
    progress = (number - warmup) / max(1, steps - warmup)
    return 0.5 * peak * (1 + math.cos(math.pi * min(1.0, progress)))
