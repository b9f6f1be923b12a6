"""What goes into a plan, and nothing else does: rates that were measured (`measure.py`), and what is assumed of the
source and the machines. Each assumption has a reason and bounds, and can be set. Pure.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from biomedclip_ray.config import ConfigError

Part = TypeVar("Part", "World", "Cluster")


def _fact(default: float, why: str, cheap: float | None = None, dear: float | None = None) -> Any:
    """An assumption: what is likely, and what would make the run cheap or dear where that may well be."""
    bounds = {"cheap": default if cheap is None else cheap, "dear": default if dear is None else dear}
    return field(default=default, metadata={"why": why, **bounds})


@dataclass(frozen=True)
class Rates:
    """Core-milliseconds and bytes, measured with the functions that the stages call."""

    measured: str
    """On what and where."""
    request_ms: float
    """One GET through boto3: client's side, without TLS."""
    version_ms: float
    """One metadata JSON parsed and judged, and its row written."""
    article_ms: float
    """One XML parsed, and its row with figures and mentions written."""
    image_ms: float
    """One image decoded, checked, shrunk and encoded, its text and kind, and its row written; panels off."""
    panels_ms: float
    """What looking for panels adds to an image, those found encoded too."""
    panels_found: float
    """Panels found per image."""
    json_bytes: float
    xml_bytes: float
    image_bytes: float
    """Mean original of the images measured; the plan assumes World.media_bytes for the whole source."""
    pair_bytes: float
    """Mean size of a row of pairs/, its JPEG included."""
    article_bytes: float
    """Mean size of a row of articles/."""
    curate_ms: float = 0.0
    """One pair of curate: hashes, near duplicates, its row written."""


@dataclass(frozen=True)
class World:
    """What is assumed about PubMed Central; each value can be set."""

    versions: float = _fact(8e6, "article versions in the bucket, by its own README")
    usable: float = _fact(
        0.75,
        "share that is the newest of its article, open and with media: 6 of 8 million, as BIOMEDICA found",
        0.65,
        0.85,
    )
    commercial: float = _fact(
        0.65, "share of those under CC0, CC BY, CC BY-SA or CC BY-ND: a guess, the first catalog tells", 0.5, 0.75
    )
    figures: float = _fact(4.6, "figures an article, over 4,180 real files", 4.2, 5.2)
    with_file: float = _fact(
        0.87, "share of figures whose image is there: 24 million pairs of 6 million articles (BIOMEDICA)", 0.8, 0.95
    )
    xml_bytes: float = _fact(124e3, "bytes an XML, over 4,180 real files; time and rows of ingest follow the bytes")
    media_bytes: float = _fact(
        27e12 / 24e6,
        "bytes an image, for the network: BIOMEDICA's 27 TB over its 24 million pairs, which counts more than images",
        0.6e6,
        1.5e6,
    )
    image_scale: float = _fact(
        1.0,
        "pixels of PMC's images over those measured, which core time follows: 1 where those are a fair sample",
        0.7,
        3.0,
    )
    article_share: float = _fact(1.0, "share of articles that ingest.select lets through; 1 without a selection")
    text_share: float = _fact(1.0, "share of images that preprocess.select lets through; 1 without a filter")
    requests_per_s: float = _fact(
        5500,
        "GETs a second answered: what S3 promises one prefix at least; keys here begin with the PMCID",
        11000,
        3500,
    )
    latency_ms: float = _fact(
        100, "milliseconds from request to last byte of a small object, in the bucket's region", 50, 200
    )

    kept: float = _fact(0.9, "share of the pairs that curate keeps: duplicates, chains and short texts go", 0.8, 0.97)
    caption_tokens: float = _fact(
        120, "tokens that train of a caption: the median of 358 characters has 90, the 90th percentile 230", 90, 256
    )
    curate_bytes: float = _fact(400, "bytes a pair that curate and the leak check read: hashes and ids, no image")
    index_ms: float = _fact(
        0.1,
        "core-milliseconds a vector of building the index: 0.045 for codes (LOG.md, 2026-11-29), and copies",
    )
    index_bytes: float = _fact(8e3, "bytes a row of the index: two vectors of 512, thumbnail, caption", 6e3, 12e3)
    month_versions: float = _fact(
        100e3, "article versions that are new or changed in a month: about a million a year", 70e3, 250e3
    )


@dataclass(frozen=True)
class Cluster:
    """The machines, and what they cost."""

    nodes: int
    cpus: int
    """Cores of a node of the data stages."""
    gpu_nodes: int = 0
    """Nodes with GPUs; none: the stages that ask for GPUs cannot run."""
    gpus: int = 1
    """GPUs of such a node."""
    gbit_per_s: float = _fact(10.0, "Gbit/s of a node that last for hours", 12.5, 5.0)
    node_hour: float = _fact(0.0, "price of a node and hour; 0: not reckoned")
    efficiency: float = _fact(
        0.8, "share of the cores' time that is work: the bound that benchmarks/ingest.py holds", 0.9, 0.6
    )
    gpu_hour: float = _fact(0.0, "price of a node with GPUs and hour; 0: not reckoned")
    head_hour: float = _fact(0.0, "price of the head and hour, up all the time; 0: not reckoned")
    gpu_tflops: float = _fact(362, "bf16 TFLOP/s of one GPU by its data sheet: an L40S; 989 an H100 or H200, 121 an L4")
    mfu: float = _fact(0.35, "share of that which training and encoding reach; the goal on an H100 is 0.45", 0.45, 0.2)
    core_gflops: float = _fact(30, "float32 GFLOP/s of one core in towers, where no GPU is asked for", 60, 12)
    fixed_s: float = _fact(2, "seconds of a stage besides its work: tasks begin, the manifest is made", 1, 15)
    model_s: float = _fact(
        8, "seconds more where a model is used: processes load torch and the model, what is made of it begins", 5, 40
    )
    train_s: float = _fact(
        25,
        "seconds more of training: towers are built, workers come up, the bundle is exported; each loads torch",
        15,
        90,
    )
    serve_s: float = _fact(
        18,
        "seconds more of deploying: Serve begins, ingress and replicas load torch, model and index, and are asked",
        10,
        60,
    )
    node_start_s: float = _fact(240, "seconds from asking for a node until it works", 120, 600)
    losses: float = _fact(0.02, "losses of a spot node an hour: 5% are said for many types, zones differ", 0.005, 0.1)
    get_million: float = _fact(0.40, "price of a million GETs where the reader pays (preprints), as S3 lists it")
    gb_month: float = _fact(0.023, "price of a GB and month of object storage")
    egress_gb: float = _fact(0.0, "price of a GB leaving the bucket's region; 0 inside it")


def bounded(part: Part, bound: Literal["cheap", "dear"], fixed: frozenset[str]) -> Part:
    """The same with every assumption at one of its bounds, but for those that somebody has set."""
    changes: dict[str, Any] = {
        entry.name: entry.metadata[bound]
        for entry in dataclasses.fields(part)
        if "why" in entry.metadata and entry.name not in fixed and entry.metadata[bound] != entry.default
    }
    return dataclasses.replace(part, **changes)


def assumptions(*parts: World | Cluster) -> list[tuple[str, float, str]]:
    """(name, value, why) of everything that is assumed and not measured."""
    return [
        (entry.name, float(getattr(part, entry.name)), entry.metadata["why"])
        for part in parts
        for entry in dataclasses.fields(part)
        if "why" in entry.metadata
    ]


def assume(world: World, cluster: Cluster, given: list[str]) -> tuple[World, Cluster]:
    """Both with `name=value` items put in. Raises ConfigError for an unknown name or no number."""
    known = {name for name, _, _ in assumptions(world, cluster)}
    for item in given:
        name, _, text = item.partition("=")
        if name not in known:
            raise ConfigError(f"--assume {item}: unknown; known: {', '.join(sorted(known))}")
        try:
            changed: dict[str, Any] = {name: float(text)}
        except ValueError as error:
            raise ConfigError(f"--assume {item}: {text!r} is no number") from error
        if name in {entry.name for entry in dataclasses.fields(World)}:
            world = dataclasses.replace(world, **changed)
        else:
            cluster = dataclasses.replace(cluster, **changed)
    return world, cluster


def check(world: World, cluster: Cluster) -> None:
    """Raises ConfigError for a value outside its range."""
    for name, value, _ in assumptions(world, cluster):
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"--assume {name}={value:g}: must be a number, and not below 0")
    for name in ("usable", "commercial", "with_file", "article_share", "text_share", "kept"):
        if not 0 <= getattr(world, name) <= 1:
            raise ConfigError(f"--assume {name}={getattr(world, name):g}: a share is between 0 and 1")
    for name in ("efficiency", "mfu"):
        if not 0 < getattr(cluster, name) <= 1:
            raise ConfigError(f"--assume {name}={getattr(cluster, name):g}: a share above 0 and up to 1")
    positive = {"nodes": cluster.nodes, "cpus": cluster.cpus, "gbit_per_s": cluster.gbit_per_s}
    positive |= {"gpu_tflops": cluster.gpu_tflops, "core_gflops": cluster.core_gflops}
    positive |= {"versions": world.versions, "requests_per_s": world.requests_per_s, "latency_ms": world.latency_ms}
    for name, value in positive.items():
        if value <= 0:
            raise ConfigError(f"{name}={value:g}: must be above 0")
