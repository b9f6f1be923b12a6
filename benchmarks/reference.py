"""open_clip_train 3.3 as it comes in the open_clip wheel, made to run a few steps inside a benchmark: its loop, loss,
optimiser and loader.
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import json
import logging
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip_train.data import get_wds_dataset
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from torch import Tensor, nn

from biomedclip_ray.config import Train

AHEAD = 100_000
"""Pairs in an epoch of the loader: it begins again by itself, whatever the shards hold, and must not end
in the middle.
"""

Batch = tuple[Tensor, Tensor]


class Reference:
    """A model of its own (a copy), and what its main.py would make around it, from our recipe.

    Attributes:
        losses: the loss of every step.
        seconds: of every step, from asking for its batch to being done with it.
    """

    def __init__(
        self, model: nn.Module, recipe: Train, steps: int, device: str = "cpu", compiled: bool = False
    ) -> None:
        self.model: Any = copy.deepcopy(model).to(device)
        self.model.output_dict = True
        decayed = [p for p in self.model.parameters() if p.requires_grad and p.ndim >= 2]
        spared = [p for p in self.model.parameters() if p.requires_grad and p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": spared, "weight_decay": 0.0}, {"params": decayed, "weight_decay": recipe.weight_decay}],
            lr=recipe.lr,
            betas=recipe.betas,
            eps=recipe.eps,
        )
        self.scheduler = cosine_lr(self.optimizer, recipe.lr, recipe.warmup_steps, steps)
        self.loss = open_clip.ClipLoss(cache_labels=True)
        self.args = argparse.Namespace(
            device=device,
            precision="amp_bf16" if recipe.precision == "bf16" else "fp32",
            grad_clip_norm=recipe.grad_clip,
            batch_size=recipe.batch,
            accum_freq=1,
            world_size=1,
            rank=0,
            log_every_n_steps=AHEAD,
            skip_scheduler=False,
            distill=False,
            horovod=False,
            wandb=False,
        )
        self.losses: list[Tensor] = []
        self.seconds: list[float] = []
        self.step = 0
        logging.getLogger().setLevel(logging.WARNING)

    def train(self, batches: Iterator[Batch], steps: int) -> None:
        """Run its `train_one_epoch` over the next `steps` batches; what was done before counts for the schedule."""
        ration = _Ration(batches, steps)
        data = argparse.Namespace(dataloader=ration, set_epoch=lambda epoch: None)
        before = self.step
        self.step += steps
        train_one_epoch(
            self.model,
            {"train": data},
            self._recorded_loss,
            0,
            self.optimizer,
            None,
            lambda step: self.scheduler(before + step),
            None,
            self.args,
        )
        self.seconds += [after - begin for begin, after in itertools.pairwise(ration.marks)]

    def _recorded_loss(self, **features: Any) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.loss(**features)
        self.losses.append(losses["contrastive_loss"].detach())
        return losses


class _Ration:
    """The next few batches of an endless loader, with a mark of the clock before each of them and at the end."""

    def __init__(self, batches: Iterator[Batch], steps: int) -> None:
        self.batches, self.num_batches, self.num_samples = batches, steps, AHEAD
        self.marks: list[float] = []

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.num_batches):
            self.marks.append(time.perf_counter())
            yield next(self.batches)
        self.marks.append(time.perf_counter())


def write_shards(pairs: Iterable[tuple[bytes, str]], folder: Path, count: int) -> None:
    """WebDataset shards of those pairs."""
    rows = list(enumerate(pairs))
    sizes = {}
    for shard in range(count):
        name = f"{shard:03d}.tar"
        with tarfile.open(folder / name, "w") as tar:
            for number, (image, text) in rows[shard::count]:
                for suffix, content in (("jpg", image), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        sizes[name] = len(rows[shard::count])
    (folder / "sizes.json").write_text(json.dumps(sizes))


def loader(shards: Path, size: int, mean: Any, std: Any, tokenizer: Any, batch: int, workers: int) -> Iterator[Batch]:
    """Its own loader over the shards, with its augmentation: (float32 (n, 3, size, size), int64 (n, context)) without
    end.
    """
    args = argparse.Namespace(
        train_data=str(shards / f"{{000..{len(list(shards.glob('*.tar'))) - 1:03d}}}.tar"),
        train_num_samples=AHEAD,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=batch,
        world_size=1,
        workers=workers,
    )
    augment = open_clip.image_transform(size, is_train=True, mean=tuple(mean), std=tuple(std))
    return iter(get_wds_dataset(args, augment, True, tokenizer=tokenizer).dataloader)
