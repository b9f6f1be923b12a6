"""What a run will cost on a cluster: requests, bytes, core-hours, GPU-hours, hours and money. Pure arithmetic; here the
three stages that read the source, in `later.py` those that read their pairs.

Three limits race in each stage: the cores, the network, and how many requests are answered in a second; the slowest
decides. All numbers are measured or assumed (`inputs.py`): whoever doubts the result can say which one is
wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from biomedclip_ray.config import COMMERCIAL, Config, ConfigError
from biomedclip_ray.cost.inputs import Cluster, Rates, World, check
from biomedclip_ray.sources.inventory import read_list


@dataclass(frozen=True)
class StageCost:
    """One stage at full scale."""

    name: str
    requests: float
    bytes_in: float
    bytes_out: float
    core_hours: float
    hours: dict[str, float]
    """How long each limit alone would take: cores, gpus, network, requests."""
    gpu_hours: float = 0.0
    on: Literal["cpu", "gpu"] = "cpu"
    """Which nodes are paid for meanwhile."""
    fixed: float = 0.0
    """Hours besides the work."""

    @property
    def binds(self) -> str:
        return max(self.hours, key=lambda limit: self.hours[limit])

    @property
    def wall(self) -> float:
        return self.hours[self.binds] + self.fixed


@dataclass(frozen=True)
class Plan:
    stages: tuple[StageCost, ...]
    images: float
    pairs: float
    articles: float
    panels_core_hours: float
    """What panels add, or would add where they are off."""
    panels_on: bool
    larger: float
    """How many times larger than the images measured World.media_bytes makes an image."""
    larger_core_hours: float
    """What preprocess would take more if core time followed those bytes."""
    unfetched: dict[str, tuple[float, float]]
    """Requests and bytes of media that each selection spares, by the section of the configuration that holds it."""
    machine_money: float
    egress_money: float
    storage_money_month: float

    @property
    def core_hours(self) -> float:
        return sum(stage.core_hours for stage in self.stages)

    @property
    def hours(self) -> float:
        return sum(stage.wall for stage in self.stages)

    @property
    def binds(self) -> str:
        """The limit that most of the time is spent at."""
        spent: dict[str, float] = {}
        for stage in self.stages:
            spent[stage.binds] = spent.get(stage.binds, 0) + stage.wall
        return max(spent, key=lambda limit: spent[limit])


def estimate(config: Config, rates: Rates, world: World, cluster: Cluster) -> Plan:
    """The cost of catalog, ingest and preprocess over the whole source, one stage after the other.

    Raises:
        ConfigError: a value outside its range.
    """
    check(world, cluster)
    select = config.source.select
    if config.own.alone:
        raise ConfigError("own.alone=true reads nothing of PubMed Central, which is what is planned here")
    newest = world.versions * (select.percent / 100)
    if select.pmcids is not None:
        newest *= min(1.0, len(read_list(select.pmcids)) / world.versions)
    if not newest:
        raise ConfigError(f"source.select.percent={select.percent:g} selects nothing")
    usable = newest * world.usable
    allowed = select.allowed()
    if allowed <= frozenset(COMMERCIAL):
        usable *= world.commercial
    if select.articles is not None:
        scale = min(1.0, select.articles / newest)
        newest, usable = newest * scale, usable * scale
    articles = usable * world.article_share
    listed = usable * world.figures * world.with_file
    selected = articles * world.figures * world.with_file
    images = selected * world.text_share
    panels_core_hours = images * rates.panels_ms / 3.6e6
    larger = world.media_bytes / rates.image_bytes
    panels = rates.panels_found if config.preprocess.panels else 0.0
    pair_rows = images * (1 + panels)
    longer = world.xml_bytes / rates.xml_bytes
    work = (
        ("catalog", newest, rates.json_bytes, rates.version_ms, newest * 650.0, 0.0),
        ("ingest", usable, world.xml_bytes, rates.article_ms * longer, articles * rates.article_bytes * longer, 0.0),
        (
            "preprocess",
            images,
            world.media_bytes,
            rates.image_ms * world.image_scale,
            pair_rows * rates.pair_bytes,
            panels_core_hours if config.preprocess.panels else 0.0,
        ),
    )
    threads = config.source.resources.threads
    stages = []
    for name, objects, size, ms, bytes_out, more in work:
        core_hours = objects * (ms + rates.request_ms) / 3.6e6 + more
        in_flight = cluster.nodes * cluster.cpus * threads
        per_second = min(world.requests_per_s, in_flight / (world.latency_ms / 1000))
        hours = {
            "cores": core_hours / (cluster.nodes * cluster.cpus * cluster.efficiency),
            "network": (objects * size + bytes_out) * 8 / (cluster.nodes * cluster.gbit_per_s * 1e9) / 3600,
            "requests": objects / per_second / 3600,
        }
        stages.append(
            StageCost(name, objects, objects * size, bytes_out, core_hours, hours, fixed=fixed_hours(cluster))
        )
    return Plan(
        stages=tuple(stages),
        images=images,
        pairs=pair_rows,
        articles=articles,
        panels_core_hours=panels_core_hours,
        panels_on=config.preprocess.panels,
        larger=larger,
        larger_core_hours=images * rates.image_ms * max(0.0, larger - world.image_scale) / 3.6e6,
        unfetched={
            name: (spared, spared * world.media_bytes)
            for name, spared in (("ingest.select", listed - selected), ("preprocess.select", selected - images))
            if spared
        },
        machine_money=sum(money(stage, cluster) for stage in stages),
        egress_money=sum(stage.bytes_in for stage in stages) / 1e9 * cluster.egress_gb,
        storage_money_month=sum(stage.bytes_out for stage in stages) / 1e9 * cluster.gb_month,
    )


def money(stage: StageCost, cluster: Cluster) -> float:
    """For machines while a stage runs: its own kind of nodes, and the head."""
    nodes = cluster.nodes * cluster.node_hour if stage.on == "cpu" else cluster.gpu_nodes * cluster.gpu_hour
    return stage.wall * (nodes + cluster.head_hour)


def fixed_hours(cluster: Cluster, more_s: float = 0.0) -> float:
    return (cluster.fixed_s + more_s) / 3600
