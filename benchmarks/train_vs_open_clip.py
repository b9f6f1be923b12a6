"""A training step beside open_clip's own, on a CPU: the same weights, pairs, precision and threads, each with its own
loader.

    python benchmarks/train_vs_open_clip.py [--data FOLDER] [--rounds N] [--steps N] [--precision bf16|fp32] [--only
    throughput|parity] [--quick]

ViT-S/16 of 224 px and a BERT of width 384, depth 12 and context 256, which is the paper's share of image to text; 64
pairs. open_clip runs its `train_one_epoch` on WebDataset shards, we a `Learner` on the feed through Ray Data. The sides
take turns, a few steps each; Ray runs only during ours, and its feed is left to fill its store before the clock starts,
so that it works at the speed of the steps. Ratios are of the median step.

- `step_padded_vs_open_clip`: their seconds over ours, captions padded to the context in both. Beside it stands the
  ceiling of the machine: the same of our step alone, its batch at hand and no feed at work on the same cores.
- `step_natural_of_ceiling`: how much of what the FLOPs promise is reached when our captions run at their natural
  length: their seconds over ours, divided by the FLOPs of padded over those of natural captions, for the very batches
  that were run.
- `text_tower_natural_vs_padded`: forward and backward of the text tower alone, on captions of the corpus; the median
  of eleven batches, and beside it the ceiling, which is what the FLOPs of those batches promise.
- `loss_parity`: both learn from the same recorded tensors (64 px, 64 tokens, 200 steps); one minus the worst relative
  difference of a mean of 20 steps. Beside it stands how far open_clip agrees with itself after a change of one part in
  a million: no trainer can do better than that. At a rate of 5e-4 it is 0.86 on so few pairs, which is why the rate
  here is 1e-4.

About fourteen minutes on two cores. `--quick`: tiny towers, to see that everything runs; its ratios say nothing. Exit 1
below a bound.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import ray
import torch

from biomedclip_ray.clip.model import Built
from biomedclip_ray.clip.tokenizer import Tokenizer, fit_tokenizer
from biomedclip_ray.config import Train, TrainResources
from biomedclip_ray.train.batches import Feed, InOrder, batches
from biomedclip_ray.train.flops import Flops, count
from biomedclip_ray.train.lengths import encode_at_natural_length
from biomedclip_ray.train.order import Order
from biomedclip_ray.train.rows import find_rows
from biomedclip_ray.train.step import Block

sys.path.insert(0, str(Path(__file__).parent))
import clips
import reference
from articles import add_data_option
from loss_parity import parity

BOUNDS = {
    "step_padded_vs_open_clip": 0.97,
    "step_natural_of_ceiling": 0.90,
    "text_tower_natural_vs_padded": 2.0,
    "loss_parity": 0.98,
}
CPUS = 2
STORE_BYTES = 96 * 1024 * 1024
"""Of Ray's object store: ten batches ahead, which the feed has ready in seconds."""
AHEAD = 40
"""Batches that the feed still has to make when our turn ends: more than fit into the store."""
IDLE = 0.25
"""Share of a core below which the feed has nothing more to do."""
SCHEDULE = 10_000
TEXT_ROUNDS = 11
PADDED, NATURAL, ALONE = "padded", "natural", "padded without a feed"

Turn = dict[str, list[tuple[float, list[int]]]]
"""(seconds, captions' lengths) of each step, by how it was run."""


SMALL = clips.Size(clips.timm_vit("small"), clips.bert(384, 12), 512, 256, 64)
TINY = clips.Size(
    {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 64}, clips.bert(64, 1), 32, 32, 8
)


def block_of(arrays: dict[str, np.ndarray], natural: bool) -> Block:
    pixels, tokens, group = (
        torch.from_numpy(np.require(arrays[name], requirements=["C", "W"])) for name in ("pixels", "tokens", "group")
    )
    return Block(pixels, tokens, group, int(arrays["position"][0]), torch.tensor(arrays["length"]) if natural else None)


class Ours:
    """Our side: the learner, and Ray with the feed while it is our turn."""

    def __init__(self, built: Built, recipe: Train, feed: Feed) -> None:
        self.learner = clips.learner_of(built, recipe, SCHEDULE)
        self.feed = feed
        self.step = 0

    def turn(self, steps: int) -> Turn:
        """Some steps of padded captions, then as many at natural length, then as many padded ones without a feed:
        (seconds, captions' lengths) of each.
        """
        ray.init(
            "local",
            num_cpus=CPUS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            object_store_memory=STORE_BYTES,
        )
        threads = set(threading.enumerate())
        size = self.feed.micro_rows
        start = self.step * size
        shard = InOrder().configure(
            {"train": batches(ray.put(self.feed), start, start + (2 * steps + AHEAD) * size, TrainResources())},
            1,
            None,
            None,
        )[0]["train"]
        found: Turn = {PADDED: [], NATURAL: [], ALONE: []}
        arriving = iter(shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2))
        with closing(arriving):  # while Ray is still there to be told
            next(arriving)
            wait_until_idle()
            for how, _ in itertools.product((PADDED, NATURAL), range(steps)):
                began = time.perf_counter()
                arrays = next(arriving)
                self.learn(block_of(arrays, natural=how == NATURAL))
                found[how].append((time.perf_counter() - began, arrays["length"].tolist()))
            at_hand = {name: values.copy() for name, values in arrays.items()}
        for thread in set(threading.enumerate()) - threads:  # who asks Ray for a block after its end ends the process
            thread.join(timeout=2)
        ray.shutdown()
        for _ in range(steps):
            began = time.perf_counter()
            self.learn(block_of(at_hand, natural=False))
            found[ALONE].append((time.perf_counter() - began, at_hand["length"].tolist()))
        return found

    def learn(self, block: Block) -> None:
        self.learner.step(self.step, [block])
        self.step += 1


def wait_until_idle() -> None:
    """Until the processes below this one have nothing to do."""
    spent = busy()
    while True:
        time.sleep(1)
        before, spent = spent, busy()
        if spent - before < IDLE:
            return


def busy() -> float:
    """CPU seconds of all processes below this one."""
    import psutil  # which comes with Ray, once that is imported

    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def throughput(data: Path, size: clips.Size, precision: str, rounds: int, steps: int) -> dict[str, float]:
    """The ratios of the steps."""
    captions = clips.real_captions(data)
    pictures = [image for image, _ in clips.real_pairs(data)]
    pairs = [(pictures[n % len(pictures)], text) for n, text in enumerate(captions)]
    tokenizer = fit_tokenizer(captions, clips.VOCABULARY, size.context)
    built = clips.build(size.vision, size.bert, size.embed_dim, tokenizer)
    mean, std = (built.preprocess_cfg[key] for key in ("mean", "std"))
    flops = count(built.model, built.model.visual.image_size, size.context, trims=True)
    image_size = built.model.visual.image_size[0]
    recipe = clips.recipe_of(size.batch, precision)
    with tempfile.TemporaryDirectory(prefix="biomedclip-bench-") as root:
        folder = Path(root)
        (folder / "shards").mkdir()
        reference.write_shards(pairs, folder / "shards", 4)
        tokenizer.save(folder / "tokenizer")
        words = open_clip.tokenizer.HFTokenizer(str(folder / "tokenizer"), context_length=size.context)
        loader = reference.loader(folder / "shards", image_size, mean, std, words, size.batch, workers=1)
        theirs = reference.Reference(built.model, recipe, SCHEDULE)
        theirs.train(loader, 1)  # warm, and its worker is started before there is Ray
        stored = clips.products(pairs, str(folder / "root"))
        rows = find_rows(*stored, "train")
        order = Order(rows.chunk_rows, 8 * size.batch, 0)
        feed = Feed(stored[0], rows, order, tokenizer, image_size, recipe.crop_scale, 0, size.batch)
        ours = Ours(built, recipe, feed)
        ours.learner.step(0, [Block(*warm_tensors(size, image_size), 0, torch.full((size.batch,), size.context // 2))])
        theirs.seconds.clear()
        found: Turn = {PADDED: [], NATURAL: [], ALONE: []}
        for number in range(rounds):
            theirs.train(loader, steps)
            for how, measured in ours.turn(steps).items():
                found[how] += measured
            print(
                f"  round {number + 1}: open_clip {seconds(theirs.seconds[-steps:])}, ours "
                + ", ".join(f"{how} {seconds([s for s, _ in measured[-steps:]])}" for how, measured in found.items()),
                flush=True,
            )
    text = text_ratio(built.model, tokenizer, captions, flops, size, precision)
    return {**step_ratios(theirs.seconds, found, flops, size), "text_tower_natural_vs_padded": text}


def warm_tensors(size: clips.Size, image_size: int) -> tuple[torch.Tensor, ...]:
    pixels = torch.zeros(size.batch, image_size, image_size, 3, dtype=torch.uint8)
    return pixels, torch.ones(size.batch, size.context, dtype=torch.int32), torch.full((size.batch,), -1)


def seconds(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values) + " s"


def step_ratios(theirs: list[float], ours: Turn, flops: Flops, size: clips.Size) -> dict[str, float]:
    lengths = [length for _, row in ours[NATURAL] for length in row]
    reference_s = statistics.median(theirs)
    padded_s, natural_s, alone_s = (statistics.median(s for s, _ in ours[how]) for how in (PADDED, NATURAL, ALONE))
    natural = np.mean([flops.text(length) for length in lengths])
    ceiling = float((flops.image + flops.text(size.context)) / (flops.image + natural))
    reached = reference_s / natural_s
    print(
        f"  {np.mean(lengths):.0f} tokens a caption of {size.context}; FLOPs of a pair: image "
        f"{flops.image / 1e9:.1f} G, "
        f"text padded {flops.text(size.context) / 1e9:.1f} G\n  at natural length FLOPs promise {ceiling:.3f} times "
        f"open_clip's throughput, {reached:.3f} are reached ({padded_s / natural_s:.3f} times our padded throughput)\n"
        f"  ceiling of this machine, padded and without a feed beside it: {reference_s / alone_s:.3f}"
    )
    return {"step_padded_vs_open_clip": reference_s / padded_s, "step_natural_of_ceiling": reached / ceiling}


def text_ratio(
    model: Any, tokenizer: Tokenizer, captions: list[str], flops: Flops, size: clips.Size, precision: str
) -> float:
    """Seconds of the padded text tower over those at natural length, forward and backward, the median of batches drawn
    from the captions.
    """
    model.train()
    draw = np.random.default_rng(0)

    def encode(tokens: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = model.encode_text(tokens, normalize=True)
        return vectors

    found, promised = [], []
    for _ in range(TEXT_ROUNDS):
        chosen = draw.choice(len(captions), size.batch, replace=False)
        tokens = torch.from_numpy(tokenizer([captions[i] for i in chosen]))
        lengths = (tokens != tokenizer.pad_id).sum(1).tolist()
        spent = {}
        for natural in (False, True):
            model.zero_grad(set_to_none=True)
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                vectors = encode_at_natural_length(encode, tokens, lengths) if natural else encode(tokens)
            vectors.float().square().sum().backward()
            spent[natural] = time.perf_counter() - began
        found.append(spent[False] / spent[True])
        promised.append(float(flops.text(size.context) / np.mean([flops.text(length) for length in lengths])))
    print(
        f"  text tower: {min(found):.2f} to {max(found):.2f} in {TEXT_ROUNDS} batches, "
        f"ceiling by FLOPs {statistics.median(promised):.2f}"
    )
    return statistics.median(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_data_option(parser)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--only", choices=("throughput", "parity"))
    parser.add_argument("--quick", action="store_true", help="tiny towers and few steps")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(CPUS)
    ratios: dict[str, float] = {}
    if options.only != "parity":
        size = TINY if options.quick else SMALL
        ratios |= throughput(options.data, size, options.precision, options.rounds, options.steps)
    if options.only != "throughput":
        ratios["loss_parity"] = parity(options.data, 40 if options.quick else 200)
    return clips.verdict(ratios, BOUNDS)


if __name__ == "__main__":
    sys.exit(main())
