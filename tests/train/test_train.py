"""What a train product is named by, and configs that cannot run: told before anything starts."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from biomedclip_ray.clip.model import model_config
from biomedclip_ray.config import ConfigError, parse
from biomedclip_ray.store.product import Product
from biomedclip_ray.train.check import build, check
from biomedclip_ray.train.train import train
from tests.clip.published import make_bert, make_published


def test_how_fast_it_trains_does_not_rename_the_product(tmp_path):
    inputs = [Product.plan(str(tmp_path), name, 1, {}, []) for name in ("preprocess", "curate")]
    one = train.plan(tiny.config(tmp_path, resources={"workers": 1}), *inputs)
    assert (
        train.plan(tiny.config(tmp_path, resources={"workers": 2, "forward_pairs": 8}), *inputs).fingerprint
        == one.fingerprint
    )
    watched = {"trackers": ["wandb"], "divergence_steps": 7, "on_nan": "skip"}
    assert train.plan(tiny.config(tmp_path, **watched), *inputs).fingerprint == one.fingerprint
    assert train.plan(tiny.config(tmp_path, lr=1e-4), *inputs).fingerprint != one.fingerprint


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
        (
            {"validation_pairs": 9, "resources": {"workers": 2, "gpus_per_worker": 1, "validation_gpus": 1}},
            8,
            2,
            "validation_gpus=1, but 2 workers with gpus_per_worker=1 leave 0 of 2 GPUs",
        ),
        ({"resources": {"workers": 2, "gpus_per_worker": 1, "validation_gpus": 1}}, 8, 2, None),  # nothing is measured
        (
            {"validation_pairs": 9, "resources": {"cpus_per_worker": 2, "validation_cpus": 3}},
            4,
            0,
            "validation_cpus=3, but 1 workers with cpus_per_worker=2 leave 2 of 4 CPUs",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_cluster_names_the_key_and_the_fix(tmp_path, changes, cpus, gpus, told):
    problems = check(tiny.config(tmp_path, **changes), tiny.cluster({"CPU": cpus, "GPU": gpus}))
    if told is None:
        assert problems == []
    else:
        assert len(problems) == 1
        assert re.search(told, problems[0])


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ({"workers": 2, "cpus_per_worker": 4}, None),
        ({"workers": 1, "cpus_per_worker": 6}, r"cpus_per_worker=6: .*4 CPUs.*there is room for 0 of .*workers=1"),
        ({"workers": 4, "cpus_per_worker": 3}, "room for 3 of train.resources.workers=4"),
        ({"workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 1}, None),
        ({"workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 2}, r"and gpus_per_worker=2.*1 GPUs.*room for 0 of"),
        (
            {"workers": 1, "cpus_per_worker": 1, "feed_cpus": 5},
            "feed_cpus=5, but 1 workers leave no node more than 4 CPUs",
        ),
        ({"workers": 2, "cpus_per_worker": 3, "feed_cpus": 3}, None),  # one node is left alone
        (
            {"workers": [3, 3], "cpus_per_worker": 3, "feed_cpus": 2},
            "feed_cpus=2, but 3 workers leave no node more than 1 CPUs",
        ),
        (
            {"workers": [3, 3], "cpus_per_worker": 3, "validation_cpus": 2},
            "validation_cpus=2, but 3 workers leave no node more",
        ),
    ],
)
def test_a_worker_must_fit_a_node_and_not_only_the_sum_of_them(tmp_path, resources, told):
    nodes = [{"CPU": 4.0, "GPU": 1.0}] * 4 if "gpus_per_worker" in resources else [{"CPU": 4.0}] * 3
    config = tiny.config(tmp_path, resources=resources, validation_pairs=9 if "validation_cpus" in resources else 0)
    problems = check(config, tiny.cluster(*nodes))
    assert bool(problems) == (told is not None)
    if told is not None:
        assert len(problems) == 1 and re.search(told, problems[0])


def test_validation_pairs_need_a_share_of_the_pairs(tmp_path):
    config = tiny.config(tmp_path, validation_pairs=9)
    splits = config.curate.splits.model_copy(update={"validation": 0.0})
    without = config.model_copy(update={"curate": config.curate.model_copy(update={"splits": splits})})
    assert check(config, tiny.cluster({"CPU": 2})) == []
    [problem] = check(without, tiny.cluster({"CPU": 2}))
    assert problem.startswith("train.validation_pairs=9, but curate.splits.validation=0")


RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
UNKNOWN = {"timm_model_name": "vit_bose_patch16_224", "image_size": 224}
BERT = {"hf_model_name": "some/bert", "context_length": 16}


@pytest.mark.parametrize(
    ("towers", "model", "recipe", "told"),
    [
        ({"vision_cfg": UNKNOWN}, {}, {}, "vision_cfg.timm_model_name=vit_bose_patch16_224.*vit_base_patch16_224"),
        ({"vision_cfg": RESNET}, {}, {"patch_dropout": 0.5}, "train.patch_dropout .*ModifiedResNet has none"),
        ({"vision_cfg": RESNET}, {}, {}, None),
        ({}, {}, {"patch_dropout": 0.5}, None),
        ({}, {}, {"loss": "sigmoid"}, "train.loss=sigmoid needs a model with a logit_bias"),
        ({"init_logit_bias": -10}, {}, {"loss": "sigmoid"}, None),
        ({"text_cfg": BERT}, {"init": "pretrained"}, {}, "model.tokenizer=fit .*set model.tokenizer=some/bert"),
        ({}, {"vocab_size": 5}, {}, "model.vocab_size=5"),
        ({}, {"bundle": "/nowhere"}, {}, "model.bundle=/nowhere.*no open_clip_config.json"),
        (
            {"text_cfg": {"context_length": 16, "vocab_size": 200, "width": 32, "heads": 5, "layers": 1}},
            {},
            {},
            "model.config: the towers cannot be built .AssertionError: embed_dim must be divisible by num_heads",
        ),
    ],
)
def test_towers_that_the_recipe_cannot_train_are_told_without_a_corpus(tmp_path, towers, model, recipe, told):
    plain = tiny.config(tmp_path, **recipe)
    file = tmp_path / "model.json"
    file.write_text(json.dumps(model_config(plain.model.config) | towers))
    changed = plain.model.model_copy(update={"config": str(file), **model})
    config = plain.model_copy(update={"model": changed})
    if told is None:
        build(config)
    else:
        with pytest.raises(ConfigError, match=told):
            build(config)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"context_length": 100}, "cannot take an image of 224 x 224 and a caption of 100 tokens"),
        ({"hf_proj_type": "mpl"}, r"Unexpected key.*text\.proj"),
        ({"hf_pooler_type": "cls"}, "KeyError: 'cls'"),
        ("more words", "its tokenizer has 103 entries, its text tower 93"),
    ],
)
def test_a_bundle_whose_parts_do_not_fit_is_told_before_training(tmp_path, changes, told):
    (bert := tmp_path / "bert").mkdir()
    (folder := tmp_path / "published").mkdir()
    make_published(folder, make_bert(bert))
    file = folder / "open_clip_config.json"
    if changes == "more words":
        vocabulary = json.loads((folder / "tokenizer.json").read_text())
        words = vocabulary["model"]["vocab"]
        words |= {f"word{number}": number for number in range(len(words), 103)}
        (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    else:
        whole = json.loads(file.read_text())
        whole["model_cfg"]["text_cfg"] |= changes
        file.write_text(json.dumps(whole))
    config = tiny.config(tmp_path)
    config = config.model_copy(update={"model": config.model.model_copy(update={"bundle": str(folder)})})
    if told is None:
        build(config)
    else:
        with pytest.raises(ConfigError, match=told) as caught:
            build(config)
        assert f"model.bundle={folder}" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"betas": [0.9, 1.0]}, "betas"),
        ({"crop_scale": [-0.5, 1.0]}, "crop_scale"),
        ({"crop_scale": [1.0, 0.1]}, r"train.crop_scale=\[1.0, 0.1\] must be \[min, max\]"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_their_key(tmp_path, changes, key):
    with pytest.raises(ConfigError, match=key):
        tiny.config(tmp_path, **changes)


def test_an_unknown_tower_is_told_with_the_known_ones(tmp_path):
    config = tiny.config(tmp_path)
    unknown = config.model_copy(update={"model": config.model.model_copy(update={"config": "vit_z"})})
    (problem,) = check(unknown, tiny.cluster({"CPU": 8}))
    assert "model.config=vit_z" in problem and "sample_64" in problem


def test_no_epochs_need_a_bundle_that_is_taken_as_it_is(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.epochs=0 trains nothing; set model\.bundle"):
        tiny.config(tmp_path, epochs=0)
    taken = parse({"root": str(tmp_path), "model": {"bundle": "some"}, "train": {"epochs": 0, "batch": 32}}, "test")
    inputs = [Product.plan(str(tmp_path), name, 1, {}, []) for name in ("preprocess", "curate")]
    assert train.plan(taken, *inputs).inputs == ()
    assert check(taken, tiny.cluster({"CPU": 0.5})) == []
