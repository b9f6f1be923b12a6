"""Every shipped recipe is started once with the GPUs, workers and places that it asks for, which only Ray believes in.

Each is a process of its own with a Ray of its own (`pretended.py`). Towers, data and steps are shrunk; what a recipe
asks of a cluster, its precision and how it computes stay.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from biomedclip_ray.clip.bundle import save_bundle
from biomedclip_ray.clip.model import build_model
from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import Config, Model, load
from biomedclip_ray.sample import make_bucket
from biomedclip_ray.store.place import Place
from biomedclip_ray.train.metrics import read
from tests.ray import pretended
from tests.train import tiny

REPO = Path(__file__).resolve().parents[2]
RECIPES = sorted((REPO / "workflows" / "configs").glob("*.yaml"))
TOWERS = REPO / "tests" / "train" / "tiny_model.json"
CLUSTER = {"CPU": 48, "GPU": 8}  # workers on 32 CPUs, 8 for validation, 8 for the feed
AFTER = ("evaluate", "embed", "serve")


class Started:
    """Runs recipes over one small bucket and root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_bucket(folder / "bucket", n_articles=24, seed=11)
        tokenizer = fit_tokenizer(["a gel", "round cells of the lung", "an axial scan"], 200, 16)
        built = build_model(Model(config=str(TOWERS), init="random"), tokenizer)
        save_bundle(folder / "published", built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {})
        towers = json.loads(TOWERS.read_text()) | {"init_logit_scale": 2.3, "init_logit_bias": -10.0}
        (folder / "siglip.json").write_text(json.dumps(towers))

    def small(self, config: Config) -> list[str]:
        """Overrides that shrink a recipe to one step, or two, of towers of 16 pixels."""
        train = config.train
        found = ["train.batch=16", "train.micro_batches=8", "train.epochs=0.1", "train.window=64"]
        found += [f"root={self.folder / 'root'}", f"source.uri={self.folder / 'bucket'}", "source.articles_per_part=12"]
        found += ["source.select.articles=null", "preprocess.short_side=32"]
        found += ["curate.splits={validation: 0.25, test: 0.25}", f"serve.resources.port={_free_port()}"]
        if train.validation_pairs:
            found.append("train.validation_pairs=4")
        if train.resources.forward_pairs is not None:  # fewer than a worker has: features are cached
            found.append("train.resources.forward_pairs=1")
        if train.patch_dropout:
            found.append("train.patch_dropout_off_epochs=0.05")
        if config.model.bundle is not None:
            return [*found, f"model.bundle=local-dir:{self.folder / 'published'}"]
        towers = self.folder / "siglip.json" if train.loss == "sigmoid" else TOWERS
        return [*found, f"model.config={towers}", "model.init=random", "model.tokenizer=fit", "model.vocab_size=200"]

    def run(self, path: Path, *arguments: str) -> dict[str, Any]:
        """The attempt at training with which the recipe ended, as its worker of rank 0 has noted it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "RAY_OVERRIDE_RESOURCES": json.dumps(CLUSTER)}
        environment |= {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"}
        command = [sys.executable, str(Path(__file__).with_name("pretended.py")), str(path)]
        done = subprocess.run(
            [*command, *self.small(load(path)), *arguments],
            env=environment,
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=540,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        stages = json.loads((self.folder / "root" / "run.json").read_text())["stages"]
        [product] = [stage["product"] for stage in stages if stage["name"] == "train"]
        attempts = sorted(Path(product).glob("attempts/*.json"))
        assert read(Place(product))[-1]["step"] == 1
        return {"output": done.stdout, **json.loads(attempts[-1].read_text())}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Started:
    return Started(tmp_path_factory.mktemp("recipes"))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _asked(config: Config) -> str:
    """What the stages after training ask for."""
    dumped = config.model_dump(mode="json")
    return json.dumps([dumped[section] for section in AFTER], sort_keys=True)


def _last(path: Path) -> str:
    """Training, or all stages where no recipe before this one asks the same of those that follow."""
    before = [_asked(load(other)) for other in RECIPES[: RECIPES.index(path)]]
    return "train" if _asked(load(path)) in before else "deploy"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_starts_every_stage_with_what_it_asks_for(started: Started, path: Path) -> None:
    last, config = _last(path), load(path)
    found = started.run(path, "--until", last)
    assert len(found["workers"]) == config.train.resources.workers
    assert len({worker["pid"] for worker in found["workers"]}) == config.train.resources.workers
    assert found["precision"] == config.train.precision
    assert (last == "train") or "Serving at " in found["output"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_recipes_gpus_are_asked_for_and_trained_beside(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper's recipe with one worker and its GPU, on the GPU of this session's cluster."""
    from biomedclip_ray.train.train import train

    recipe = load(REPO / "workflows" / "configs" / "biomedclip_vit_b16.yaml").train
    assert recipe.resources.gpus_per_worker == 1
    pretended.over_gloo(monkeypatch.setattr)
    small = tiny.config(tmp_path, epochs=0.3, precision=recipe.precision, resources={"gpus_per_worker": 1})
    product = train.run(small, *tiny.products(tmp_path)).product
    assert product.manifest["steps"] == 1
