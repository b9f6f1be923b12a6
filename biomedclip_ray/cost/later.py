"""The five stages that read the pairs: curate, train, evaluate, embed, deploy; and all eight together.

A tower's FLOPs follow from its shape (24 d^2 T + 4 T^2 d a layer: matrices and attention), a pass backward costs two
forward, and a batch that does not fit is encoded twice. What a GPU makes of that is one assumption, mfu.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from biomedclip_ray.clip.model import model_config
from biomedclip_ray.config import Config
from biomedclip_ray.cost.estimate import Plan, StageCost, estimate, fixed_hours
from biomedclip_ray.cost.inputs import Cluster, Rates, World

_WIDTHS = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24), "huge": (1280, 32)}
_FORWARD, _TRAINING, _TWICE = 1, 3, 4


@dataclass(frozen=True)
class Towers:
    """FLOPs of a forward pass: of an image, of a token, and of a token's attention to each other."""

    image: float
    token: float
    attention: float
    context: int

    def pair(self, tokens: float) -> float:
        length = min(tokens, self.context)
        return self.image + self.token * length + self.attention * length**2


def towers(config: Config) -> Towers:
    """Of the model config; a bundle that is started from counts as the config beside it.

    Raises:
        ConfigError: there is no such model config.
    """
    model: dict[str, Any] = model_config(config.model.config)
    vision, text = model["vision_cfg"], model["text_cfg"]
    name = vision.get("timm_model_name", "")
    width, layers = _shape(name, vision.get("width", 768), vision.get("layers", 12))
    found = re.search(r"patch(\d+)", name)
    patch = int(found[1]) if found else vision.get("patch_size", 16)
    patches = (vision["image_size"] // patch) ** 2 + 1
    image = layers * (24 * width**2 * patches + 4 * patches**2 * width) + 6 * patch**2 * width * patches
    width, layers = _shape(text.get("hf_model_name", ""), text.get("width", 768), text.get("layers", 12))
    return Towers(image, 24.0 * layers * width**2, 4.0 * layers * width, text["context_length"])


def _shape(name: str, width: int, layers: int) -> tuple[int, int]:
    """Width and layers by the word for the size in a model's name, else as given."""
    return next((shape for word, shape in _WIDTHS.items() if word in name.lower()), (width, layers))


@dataclass(frozen=True)
class Whole:
    """A plan of all stages that the configuration has."""

    stages: tuple[StageCost, ...]
    source: Plan
    """Of the first three."""
    kept: float
    """Pairs that are trained on, of all splits."""
    index_bytes: float
    lacking: str = ""
    """What no node of the cluster can do, in one sentence."""

    @property
    def hours(self) -> float:
        return sum(stage.wall for stage in self.stages)


def whole(config: Config, rates: Rates, world: World, cluster: Cluster) -> Whole:
    """All eight stages, one after the other.

    Raises:
        ConfigError: a value outside its range, or nothing to read.
    """
    source = estimate(config, rates, world, cluster)
    kept = source.pairs * world.kept
    splits, shape = config.curate.splits, towers(config)
    forward = shape.pair(world.caption_tokens)
    seen = kept * (1 - splits.validation - splits.test) * config.train.epochs
    pool = source.images * world.kept * (splits.test if config.evaluate.split == "test" else splits.validation)
    parts = max(1.0, source.articles / config.source.articles_per_part)
    train = config.train.resources
    cores = max(1.0, train.cpus_per_worker)  # a worker has one thread at least
    share = config.train.batch / (train.max_workers or 1)
    twice = train.forward_pairs is not None and share > train.forward_pairs
    passes = _TWICE if twice else _TRAINING
    read = source.stages[2].bytes_out
    index = kept * world.index_bytes
    machine = _Machine(cluster, world)
    stages = [
        machine.on_cores("curate", parts, source.pairs * world.curate_bytes, source.pairs * rates.curate_ms, parts),
        machine.towers(
            "train",
            seen * forward * passes,
            (
                bool(train.gpus_per_worker),
                train.max_workers * (train.gpus_per_worker or cores),
            ),
            read * world.kept * config.train.epochs,
            parts * config.train.epochs,
        ),
        machine.towers(
            "evaluate", pool * forward * _FORWARD, _pool(config.evaluate.resources), read * splits.test, parts
        ),
        machine.towers(
            "embed", kept * forward * _FORWARD, _pool(config.embed.resources), read, parts, kept * world.index_ms, index
        ),
        machine.towers("deploy", 0.0, (config.serve.resources.gpus_per_replica > 0, 1.0), index, 0.0),
    ]
    lacking = ""
    if not cluster.gpu_nodes and any(stage.on == "gpu" for stage in stages):
        names = ", ".join(stage.name for stage in stages if stage.on == "gpu")
        lacking = f"{names} ask for GPUs, and no node has one: name the cluster's file, --cluster FILE"
        stages = [stage for stage in stages if stage.on == "cpu"]
    if config.train.epochs == 0:
        stages = [stage for stage in stages if stage.name != "train"]
    return Whole((*source.stages, *stages), source, kept, index, lacking)


def _pool(resources: Any) -> tuple[bool, float]:
    """Whether a stage asks for GPUs, and how many it may use at once; 0: all there are."""
    gpus = resources.num_gpus > 0
    return gpus, (resources.concurrency or 0) * (resources.num_gpus if gpus else resources.num_cpus)


@dataclass(frozen=True)
class _Machine:
    cluster: Cluster
    world: World

    def on_cores(self, name: str, requests: float, size: float, core_ms: float, written: float) -> StageCost:
        cluster = self.cluster
        core_hours = core_ms / 3.6e6
        hours = {
            "cores": core_hours / (cluster.nodes * cluster.cpus * cluster.efficiency),
            "network": size * 8 / (cluster.nodes * cluster.gbit_per_s * 1e9) / 3600,
            "requests": (requests + written) / self.world.requests_per_s / 3600,
        }
        return StageCost(name, requests, size, 0.0, core_hours, hours, fixed=fixed_hours(cluster))

    def towers(
        self,
        name: str,
        flops: float,
        units: tuple[bool, float],
        size: float,
        requests: float,
        core_ms: float = 0.0,
        written: float = 0.0,
    ) -> StageCost:
        """A stage that runs the towers; `units`: whether on GPUs, and how many of them (or of cores) at most."""
        cluster, (gpus, most) = self.cluster, units
        there = max(1, cluster.gpu_nodes) * cluster.gpus if gpus else cluster.nodes * cluster.cpus
        used = min(there, most) if most else there
        speed = cluster.gpu_tflops * 1e12 * cluster.mfu if gpus else cluster.core_gflops * 1e9
        unit_hours = flops / speed / 3600
        nodes = max(1, cluster.gpu_nodes) if gpus else cluster.nodes
        core_hours = core_ms / 3.6e6
        hours = {
            "gpus" if gpus else "cores": unit_hours / used,
            "network": (size + written) * 8 / (nodes * cluster.gbit_per_s * 1e9) / 3600,
            "requests": requests / self.world.requests_per_s / 3600,
        }
        # the index is built when all vectors are there
        build = core_hours / (cluster.cpus * cluster.efficiency)
        start = cluster.node_start_s / 3600 if gpus else 0.0
        begin = {"train": cluster.train_s, "deploy": cluster.serve_s}.get(name, cluster.model_s)
        return StageCost(
            name,
            requests,
            size,
            written,
            core_hours + (0.0 if gpus else unit_hours),
            hours,
            unit_hours if gpus else 0.0,
            "gpu" if gpus else "cpu",
            fixed_hours(cluster, begin) + build + start,
        )
