"""What a cluster of two CPUs and a GPU cannot give is one line each, with the key and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from biomedclip_ray.clip import model
from biomedclip_ray.config import STAGES, Config, parse
from biomedclip_ray.run.capacity import connected
from biomedclip_ray.run.preflight import check_cluster
from biomedclip_ray.train.check import STARTED
from biomedclip_ray.train.train import train
from tests.run.steps import inputs, steps

pytestmark = pytest.mark.usefixtures("ray_cluster")


def _config(root: Path, **sections: object) -> Config:
    small = {"model": {"config": "sample_64", "init": "random"}}
    train = {"train": {"resources": {"workers": 1, "cpus_per_worker": 1, "feed_cpus": 0.5, "feed_concurrency": 1}}}
    return parse({"root": str(root), "source": {"uri": str(root)}, **small, **train, **sections}, "test")


def _lacking(config: Config, names: tuple[str, ...]) -> list[str]:
    """What the cluster lacks for the stages of those names."""
    return check_cluster(config, steps(config, names), connected())


def test_a_config_that_fits_is_not_complained_about(tmp_path: Path) -> None:
    assert _lacking(_config(tmp_path), STAGES) == []


@pytest.mark.parametrize("stage", ["catalog", "ingest", "preprocess", "evaluate", "embed"])
@pytest.mark.parametrize(("key", "unit"), [("num_cpus", "CPUs"), ("num_gpus", "GPUs")])
def test_more_than_there_is_names_the_key(tmp_path: Path, stage: str, key: str, unit: str) -> None:
    config = _config(tmp_path, **{stage: {"resources": {key: 8}}})
    have = 2 if unit == "CPUs" else 1
    assert _lacking(config, STAGES) == [f"{stage}.resources.{key}=8, but the cluster has {have} {unit}; lower it"]


def test_a_stage_that_has_nothing_to_do_is_not_asked_about(tmp_path: Path) -> None:
    config = _config(tmp_path, ingest={"resources": {"num_cpus": 64}})
    assert _lacking(config, ("preprocess", "curate")) == []


def test_training_that_leaves_its_feed_no_cpu_is_refused(tmp_path: Path) -> None:
    train = {"resources": {"workers": 2, "cpus_per_worker": 1}}
    [problem] = _lacking(_config(tmp_path, train=train), ("train",))
    assert problem.startswith(
        "train.resources.cpus_per_worker=1 with 2 workers (train.resources.workers=2) leaves 0 whole CPUs of 2"
    )
    assert "set train.resources.cpus_per_worker=" in problem


def test_towers_that_cannot_be_built_are_told_before_any_stage_unless_they_are_there(tmp_path: Path) -> None:
    broken = json.loads((Path(model.__file__).parent / "configs" / "sample_64.json").read_text())
    broken["vision_cfg"] = {"timm_model_name": "vit_bose_patch16_224", "image_size": 224}
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    config = _config(tmp_path, model={"config": str(tmp_path / "broken.json"), "init": "random"})
    [problem] = _lacking(config, STAGES)
    assert "vision_cfg.timm_model_name=vit_bose_patch16_224: timm has no such model" in problem
    train.plan(config, *inputs(config)).place.write(STARTED, b"{}")
    assert _lacking(config, STAGES) == []
    assert _lacking(config, ("ingest",)) == []


def test_more_replicas_than_cpus_are_refused(tmp_path: Path) -> None:
    serve = {"resources": {"replicas": 3, "max_replicas": 3, "cpus_per_replica": 1}}
    [problem] = _lacking(_config(tmp_path, serve=serve), ("deploy",))
    assert "serve.resources.replicas=3 x cpus_per_replica=1" in problem
    assert "the cluster has 2 CPUs; lower one of them" in problem
