"""Pace, share of the device's arithmetic and memory of a training step on one GPU, beside open_clip's own step in the
same run.

    python benchmarks/train_gpu.py [--batches 256 512 1024 2048] [--steps 20] [--device cpu --tiny]

ViT-B/16 of 224 px and BERT-base at random weights, bf16, plain PyTorch without Ray and without a loader: batches lie on
the device, as they do for a trainer that is fed well. Captions are drawn with the lengths that figure captions have
(log-normal, median 84 tokens, 105 on average, as 1,904 captions of 424 articles have). For each local batch:

- open_clip: its `train_one_epoch`, context 256, as it is by default (captions padded, not compiled).
- ours: context 256 padded, 256 and 512 at natural length, 512 with half of the patches left out; each compiled or not.

MFU counts the FLOPs of real tokens and of patches that are shown, forward and backward, against the device's bf16 peak:
padding is no achievement. Memory is what the allocator had out at most. A batch that does not fit says so.

Over the steps that are timed our side runs under `torch.cuda.set_sync_debug_mode("error")`: a step that makes the host
wait for the device fails. On a CPU, where nobody waits, operations that would are refused instead.

`gpu_step_vs_open_clip`: pairs per second of ours at natural length and context 256, compiled, over open_clip's, the
median of the batches; beside it the same for padded captions. Goals on one H100 or H200 are printed with what was
found. `--device cpu --tiny` runs every line of this on a CPU and says nothing about speed. Exit 1 below the bound, 2
without the device.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from biomedclip_ray.clip.tokenizer import Tokenizer, fit_tokenizer
from biomedclip_ray.config import Train
from biomedclip_ray.train import flops
from biomedclip_ray.train.step import Block, Learner

sys.path.insert(0, str(Path(__file__).parent))
import clips
import reference

BOUND = {"gpu_step_vs_open_clip": 1.5}
MEDIAN_TOKENS, SPREAD = 84, math.sqrt(2 * math.log(105 / 84))
POOL = 4
"""Batches that take turns."""
WARM = 5
SCHEDULE = 1_000_000
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique2")
"""Operations whose result the host has to see."""


class Case(NamedTuple):
    """One way to run a step."""

    context: int
    natural: bool
    patch_dropout: float
    compiled: bool

    def __str__(self) -> str:
        words = [f"context {self.context}", "natural" if self.natural else "padded"]
        return ", ".join(
            words
            + [f"{self.patch_dropout:.0%} of patches out"] * bool(self.patch_dropout)
            + ["compiled"] * self.compiled
        )


WAYS = [(256, False, 0.0), (256, True, 0.0), (512, True, 0.0), (512, True, 0.5)]
CASES = [Case(*way, compiled) for way, compiled in itertools.product(WAYS, (False, True))]
GOALS = {Case(256, False, 0.0, True): 1800, Case(512, True, 0.0, True): 2400, Case(512, True, 0.5, True): 3500}


class Found(NamedTuple):
    pairs_per_s: float
    mfu: float | None
    gigabytes: float | None

    def __str__(self) -> str:
        share = "-" if self.mfu is None else f"{self.mfu:.1%}"
        held = "-" if self.gigabytes is None else f"{self.gigabytes:.1f}"
        return f"{self.pairs_per_s:8.0f} pairs/s   MFU {share:>6}   {held:>5} GB"


class Towers:
    """Models of one size, made anew for each case, and batches for them."""

    def __init__(self, tiny: bool, device: torch.device) -> None:
        self.tiny, self.device = tiny, device
        self.side = 32 if tiny else 224
        words = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefgh"]
        self.words = [" ".join(words)] * 4

    def tokenizer(self, context: int) -> Tokenizer:
        return fit_tokenizer(self.words, 200, context)

    def model(self, context: int) -> Any:
        """Random weights; the vocabulary is small, which no FLOP depends on."""
        tokenizer = self.tokenizer(context)
        if not self.tiny:
            return clips.build(clips.timm_vit("base"), {}, 512, tokenizer)
        vision = {"image_size": self.side, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
        bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        return clips.build(vision, bert, 32, tokenizer)

    def blocks(self, batch: int, context: int) -> list[Block]:
        """Batches on the device, with the lengths of their captions."""
        draw = np.random.default_rng(0)
        words = self.tokenizer(context).vocab_size
        blocks = []
        for number in range(POOL):
            lengths = np.exp(draw.normal(math.log(MEDIAN_TOKENS), SPREAD, batch)).round().clip(3, context).astype(int)
            tokens = draw.integers(1, words, (batch, context), dtype=np.int32)
            tokens[np.arange(context) >= lengths[:, None]] = 0
            pixels = draw.integers(0, 256, (batch, self.side, self.side, 3), dtype=np.uint8)
            moved = (torch.from_numpy(array).to(self.device) for array in (pixels, tokens, np.full(batch, -1)))
            blocks.append(Block(*moved, first=number * batch, lengths=torch.from_numpy(lengths)))
        return blocks


def recipe_of(batch: int, case: Case) -> Train:
    return Train.model_validate(
        {
            "batch": batch,
            "micro_batches": 1,
            "precision": "bf16",
            "patch_dropout": case.patch_dropout,
            "resources": {"compile": case.compiled},
        }
    )


def ours(towers: Towers, batch: int, case: Case, steps: int) -> Found:
    built = towers.model(case.context)
    blocks = towers.blocks(batch, case.context)
    work = flops_of(built.model.to(towers.device), blocks, case)
    learner = Learner(
        built.model,
        recipe_of(batch, case),
        SCHEDULE,
        built.preprocess_cfg["mean"],
        built.preprocess_cfg["std"],
        towers.device,
    )
    shown = [block if case.natural else Block(block.pixels, block.tokens, block.group, block.first) for block in blocks]
    for number in range(max(WARM, len(shown))):  # each batch once: its groups of captions have shapes of their own
        result = learner.step(number, [shown[number % POOL]])
    wait(towers.device)
    forget_peak(towers.device)
    began = time.perf_counter()
    with nobody_waits(towers.device):
        for number in range(steps):
            result = learner.step(number, [shown[number % POOL]])
    wait(towers.device)
    spent = time.perf_counter() - began
    if not math.isfinite(float(result.loss)):
        raise ArithmeticError(f"{case}: the loss is {float(result.loss)}")
    return found(batch, work, steps, spent, towers.device)


def open_clips(towers: Towers, batch: int, context: int, steps: int) -> Found:
    case = Case(context, natural=False, patch_dropout=0.0, compiled=False)
    built = towers.model(context)
    theirs = reference.Reference(built.model, recipe_of(batch, case), SCHEDULE, str(towers.device))
    blocks = towers.blocks(batch, context)
    work = flops_of(theirs.model, blocks, case)
    mean, std = (
        torch.tensor(built.preprocess_cfg[key], device=towers.device).view(1, 3, 1, 1) * 255 for key in ("mean", "std")
    )
    batches = [((b.pixels.permute(0, 3, 1, 2).float() - mean) / std, b.tokens.long()) for b in blocks]
    endless = itertools.cycle(batches)
    theirs.train(endless, WARM)
    wait(towers.device)
    forget_peak(towers.device)
    began = time.perf_counter()
    theirs.train(endless, steps)
    wait(towers.device)
    return found(batch, work, steps, time.perf_counter() - began, towers.device)


def flops_of(model: Any, blocks: list[Block], case: Case) -> list[float]:
    """Of forward and backward over each batch's images, as far as they are shown, and over the real tokens of its
    captions.
    """
    cost = flops.count(model, model.visual.image_size, case.context, trims=True)
    images = cost.image * (1 - case.patch_dropout) * len(blocks[0].pixels)
    return [flops.TRAINING * (images + sum(cost.text(int(n)) for n in block.lengths)) for block in blocks]  # type: ignore[union-attr]


def found(batch: int, work: list[float], steps: int, seconds: float, device: torch.device) -> Found:
    peak = flops.peak(device, "bf16")
    done = sum(work[number % POOL] for number in range(steps))
    return Found(
        steps * batch / seconds,
        None if peak is None else done / seconds / peak,
        torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
    )


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


class _Refuse(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in WAITS and args[0].dtype != torch.float64:  # which only the host reckons in
            raise RuntimeError(f"a step asks for the result of {func}: on a GPU the host would wait for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def nobody_waits(device: torch.device) -> Iterator[None]:
    """A wait of the host for the device is an error in here."""
    if device.type != "cuda":
        with _Refuse():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def attempt(label: str, run: Any) -> Found | None:
    """Run, print, let the memory go; None where it does not fit."""
    result: Found | None = None
    try:
        result = run()
        print(f"  {label:55} {result}", flush=True)
    except torch.cuda.OutOfMemoryError:
        print(f"  {label:55} does not fit", flush=True)
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="towers and batches of a CPU's size")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu --tiny runs the same lines without one", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    # for both sides, as open_clip's own main.py does
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    batches, steps = ([8], 2) if options.tiny else (options.batches, options.steps)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {steps} steps, bf16", flush=True)
    towers = Towers(options.tiny, device)
    ratios: dict[bool, list[float]] = {False: [], True: []}
    best = dict.fromkeys(GOALS, 0.0)
    for batch in batches:
        print(f"local batch {batch}")
        theirs = attempt("open_clip, context 256, padded", lambda: open_clips(towers, batch, 256, steps))  # noqa: B023
        for case in CASES:
            result = attempt(f"ours, {case}", lambda: ours(towers, batch, case, steps))  # noqa: B023
            if result is None:
                continue
            if case in GOALS:
                best[case] = max(best[case], result.pairs_per_s)
            if theirs is not None and case.compiled and case.context == 256:
                ratios[case.natural].append(result.pairs_per_s / theirs.pairs_per_s)
    for case, goal in GOALS.items():
        print(f"goal on one H100 or H200: {case}: {best[case]:.0f} of {goal} pairs/s")
    if not ratios[True]:
        print("no batch fits both sides; name smaller ones with --batches", file=sys.stderr)
        return 2
    print(f"padded beside padded: {statistics.median(ratios[False]):.2f}")
    return clips.verdict({"gpu_step_vs_open_clip": statistics.median(ratios[True])}, BOUND)


if __name__ == "__main__":
    sys.exit(main())
