"""What a train product is named by, and configs that cannot run: told before anything starts."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from biomedclip_ray.config import ConfigError, parse
from biomedclip_ray.product import Product
from biomedclip_ray.train.train import check, plan


def test_how_fast_it_trains_does_not_rename_the_product(tmp_path):
    inputs = [Product.plan(str(tmp_path), name, 1, {}, []) for name in ("preprocess", "curate")]
    one = plan(tiny.config(tmp_path, resources={"workers": 1}), *inputs)
    assert (
        plan(tiny.config(tmp_path, resources={"workers": 2, "forward_pairs": 8}), *inputs).fingerprint
        == one.fingerprint
    )
    assert plan(tiny.config(tmp_path, lr=1e-4), *inputs).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("changes", "cpus", "gpus", "told"),
    [
        ({"resources": {"workers": 2}}, 2, 0, None),
        (
            {"resources": {"workers": 2, "cpus_per_worker": 1}},
            2,
            0,
            "cpus_per_worker=1 .*leaves 0 whole CPUs of 2 to the feed.*set train.resources.cpus_per_worker=0.5 or less",
        ),
        ({"resources": {"workers": 1, "cpus_per_worker": 1.25}}, 2, 0, "leaves 0 whole CPUs of 2 to the feed"),
        ({"resources": {"workers": [1, 4], "cpus_per_worker": 1}}, 2, 0, "with 2 workers .*leaves 0 whole CPUs"),
        ({"resources": {"workers": [1, 4], "cpus_per_worker": 2}}, 3, 0, None),
        (
            {"resources": {"workers": 4, "gpus_per_worker": 1}},
            16,
            2,
            "needs 4 GPUs, the cluster has 2; set train.resources.gpus_per_worker=0",
        ),
        ({"loss": "sigmoid"}, 2, 0, "train.loss=sigmoid needs init_logit_bias"),
    ],
)
def test_a_config_that_does_not_fit_the_cluster_names_the_key_and_the_fix(tmp_path, changes, cpus, gpus, told):
    problems = check(tiny.config(tmp_path, **changes), cpus, gpus)
    if told is None:
        assert problems == []
    else:
        assert len(problems) == 1
        assert re.search(told, problems[0])


def test_an_unknown_tower_is_told_with_the_known_ones(tmp_path):
    config = tiny.config(tmp_path)
    unknown = config.model_copy(update={"model": config.model.model_copy(update={"config": "vit_z"})})
    (problem,) = check(unknown, 8, 0)
    assert "model.config=vit_z" in problem and "sample_64" in problem


def test_no_epochs_need_a_bundle_that_is_taken_as_it_is(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.epochs=0 trains nothing; set model\.bundle"):
        tiny.config(tmp_path, epochs=0)
    taken = parse({"root": str(tmp_path), "model": {"bundle": "some"}, "train": {"epochs": 0, "batch": 32}}, "test")
    inputs = [Product.plan(str(tmp_path), name, 1, {}, []) for name in ("preprocess", "curate")]
    assert plan(taken, *inputs).inputs == ()
    assert check(taken, 0.5, 0) == []
