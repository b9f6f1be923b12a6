"""Each shipped recipe builds its real towers, finds the published text tower in a Hugging Face cache and takes two
steps.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import load
from biomedclip_ray.train.check import check
from tests.clip.published import make_bert, make_published
from tests.train import tiny

CONFIGS = Path(__file__).parents[2] / "workflows" / "configs"
RECIPES = [path for path in sorted(CONFIGS.glob("*.yaml")) if load(path).model.tokenizer != "fit"]
GPU_RECIPES = [path for path in sorted(CONFIGS.glob("*.yaml")) if load(path).train.resources.gpus_per_worker]
BERT_BASE = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512, "vocab_size": 30522}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face cache that holds a BERT of the published size and its tokenizer, without weights."""
    home = tmp_path_factory.mktemp("hf")
    [name] = {load(path).model.tokenizer for path in RECIPES}
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    fit_tokenizer(["a gel", "round cells of the lung, stained blue", "an axial scan", "a chart"], 200, 512).save(
        snapshot
    )
    (snapshot / "config.json").write_text(json.dumps(BERT_BASE))
    return home


def steps(home: Path, *arguments: str) -> dict[str, Any]:
    """What `recipe_step.py` prints in a process of its own, with that Hugging Face cache."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, str(Path(__file__).with_name("recipe_step.py")), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("path", GPU_RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_the_clusters_that_are_described_and_measures_its_checkpoints_in_minutes(path: Path) -> None:
    config = load(path)
    nodes = [{"CPU": 16.0, "GPU": 1.0}] * 8  # cluster/: eight workers, one GPU each
    assert check(config, tiny.cluster(*nodes)) == []
    resources = config.train.resources
    pairs_per_s = 500 if resources.validation_gpus else 1.5 * resources.validation_cpus  # ViT-B/16 and BERT, one core
    assert config.train.validation_pairs / pairs_per_s < 300
    narrow = [{"CPU": 16.0, "GPU": 1.0}] * 7
    [problem] = check(config, tiny.cluster(*narrow))
    assert "needs 8 GPUs, the cluster has 7" in problem


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_takes_steps_with_its_real_towers(path: Path, cache: Path) -> None:
    found, config = steps(cache, str(path)), load(path)
    assert found["side"] == (384 if "384px" in path.stem else 224)
    assert found["context"] == (512 if config.model.config.endswith("512") else 256)
    towers = {"visual", "text", "logit_scale"} - {
        "visual" if tower == "image" else tower for tower in config.train.lock
    }
    assert set(found["moved"]) - {"logit_bias"} == towers
    cached = config.train.resources.forward_pairs is not None  # each pass first without a graph, then with one
    assert found["passes"] == ([2, 2, 2, 2] if cached else [4])
    if config.train.loss == "infonce":
        assert found["loss"] == pytest.approx(math.log(4), abs=1.0)
    else:
        assert math.isfinite(found["loss"])


@pytest.mark.slow
def test_the_recipe_of_fine_tuning_takes_steps_from_a_folder_in_the_published_format(tmp_path: Path) -> None:
    bert, folder = tmp_path / "bert", tmp_path / "published"
    bert.mkdir()
    folder.mkdir()
    make_published(folder, make_bert(bert))
    path = CONFIGS / "finetune_biomedclip.yaml"
    # in a warm-up of 500 steps the first ones are too small for the temperature's float32
    found = steps(tmp_path, str(path), f"model.bundle=local-dir:{folder}", "train.warmup_steps=5")
    assert (found["side"], found["context"]) == (224, 48)
    assert found["moved"] == ["logit_scale", "text", "visual"]
    assert found["loss"] == pytest.approx(math.log(4), abs=1.0)
