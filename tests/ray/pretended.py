"""The workflow on GPUs that only Ray believes in: training meets over gloo and computes on CPUs; all else is shipped.

    RAY_OVERRIDE_RESOURCES='{"CPU": 48, "GPU": 8}' python tests/ray/pretended.py CONFIG [key=value ...] [--until STAGE]

NCCL and `cuda:0` are what a machine without a GPU cannot do; what is asked of Ray, and given by it, stays.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

REPO = Path(__file__).resolve().parents[2]


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """The training worker's loop, on its CPUs."""
    import torch

    from biomedclip_ray.train import loop

    loop.get_device = lambda: torch.device("cpu")  # a worker's process ends with its group
    return loop.train_loop(config)


def workflow() -> ModuleType:
    spec = importlib.util.spec_from_file_location("workflow", REPO / "workflows" / "biomedclip.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def over_gloo(patch: Callable[[Any, str, Any], None]) -> None:
    """Let this driver's training workers meet over gloo, on CPUs; `patch` sets an attribute."""
    import ray.train.torch

    import biomedclip_ray.train.loop

    gloo = ray.train.torch.TorchConfig(backend="gloo")
    patch(ray.train.torch, "TorchTrainer", functools.partial(ray.train.torch.TorchTrainer, torch_config=gloo))
    patch(biomedclip_ray.train.loop, "train_loop", train_loop)


def main(arguments: list[str]) -> int:
    program = workflow()
    over_gloo(setattr)
    return int(program.main(arguments))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
