"""A driver of its own for the tests that kill one: `python drive.py ROOT WORKERS` trains the tiny
products below ROOT.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import ray
import tiny

from biomedclip_ray.config import Config
from biomedclip_ray.train.train import train

STEPS = 120


def config(root: Path | str, workers: int) -> Config:
    resources = {"workers": workers, "prefetch_batches": 6}
    return tiny.config(root, epochs=(STEPS - 0.5) * 32 / 72, log_pairs=True, checkpoint_steps=10, resources=resources)


def main(root: str, workers: int) -> None:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    print(train.run(config(root, workers), *tiny.products(root)).state, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
