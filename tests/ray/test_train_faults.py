"""What training goes on through: a store that takes its time, a step without a number, a validation that cannot be
done; and what it starts from: a CLIP in the published format.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import tiny

from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.config import parse
from biomedclip_ray.store.product import Product
from biomedclip_ray.train import loop
from biomedclip_ray.train.checkpoint import folder_name
from biomedclip_ray.train.metrics import read
from biomedclip_ray.train.train import DivergedError, train
from tests.clip.published import make_bert, make_published

pytestmark = pytest.mark.usefixtures("ray_cluster")

STEPS, BROKEN = 12, 6  # counted from 1


def with_faults(train_loop: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """The worker's loop where one step's images give NaN, and the store takes the first checkpoint only after two
    more steps: a step that waited for it would wait for ever."""

    def loop(config: dict[str, Any]) -> Any:
        import time

        from ray.train.v2._internal.execution.storage import StorageContext

        from biomedclip_ray.train.step import Learner

        begun: list[int] = []
        step, features, persist = Learner.step, Learner.features, StorageContext.persist_current_checkpoint

        def counted(self: Learner, number: int, *rest: Any) -> Any:
            begun.append(number + 1)
            return step(self, number, *rest)

        def broken(self: Learner, block: Any) -> Any:
            vectors = features(self, block)
            return vectors._replace(image=vectors.image * float("nan")) if begun[-1] == BROKEN else vectors

        def slow(self: StorageContext, checkpoint: Any, name: str, *rest: Any, **more: Any) -> Any:
            deadline = time.monotonic() + 30
            while name == folder_name(4) and begun[-1] < 6:
                if time.monotonic() > deadline:
                    raise TimeoutError("no step begins while a checkpoint is uploaded")
                time.sleep(0.01)
            return persist(self, checkpoint, name, *rest, **more)

        Learner.step, Learner.features, StorageContext.persist_current_checkpoint = counted, broken, slow
        return train_loop(config)

    return loop


def run(root: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Product:
    """Twelve steps with those faults, checkpoints each four, and validation pairs that are no images."""
    monkeypatch.setattr(loop, "train_loop", with_faults(loop.train_loop))
    pairs, corpus = tiny.products(root, unreadable=("validation",))
    changes = {"epochs": (STEPS - 0.5) * 32 / 72, "validation_pairs": 7, "keep_checkpoints": 3, **changes}
    config = tiny.config(root, resources={"max_failures": 0}, **changes)
    try:
        train.run(config, pairs, corpus)
    finally:
        product = train.plan(config, pairs, corpus)
    return product


@pytest.fixture(scope="module")
def told() -> Iterator[list[str]]:
    """What the driver says of the run below, from warnings on."""
    lines: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("biomedclip_ray.train").addHandler(listener)
    yield lines
    logging.getLogger("biomedclip_ray.train").removeHandler(listener)


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory, told: list[str]) -> Product:
    with pytest.MonkeyPatch.context() as patch:
        return run(tmp_path_factory.mktemp("troubled"), patch, on_nan="skip")


def test_steps_go_on_while_a_checkpoint_is_uploaded(troubled):
    """Or the upload, which waits for two steps, had ended the run."""
    kept = {path.name for path in Path(troubled.place.uri).glob("checkpoints/step-*")}
    assert kept == {folder_name(4), folder_name(8), folder_name(12)}


def test_a_skipped_step_costs_its_line_and_not_the_run(troubled):
    lines = {line["step"]: line for line in read(troubled.place)}
    assert sorted(lines) == [step for step in range(1, STEPS + 1) if step != BROKEN]
    assert {line["skipped"] for step, line in lines.items() if step < BROKEN} == {0}
    assert {line["skipped"] for step, line in lines.items() if step > BROKEN} == {1}
    assert lines[STEPS]["loss"] < lines[1]["loss"]
    vectors = Encoder.load(troubled.place.at("bundle").uri, device="cpu").encode_text(["3 round red cells"])
    assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)


def test_a_validation_that_fails_costs_its_figure_and_not_the_run(troubled, told):
    assert troubled.manifest["validation"] == {}
    assert any("no checkpoint could be measured" in line for line in told)
    assert (troubled.manifest["chosen_by"], troubled.manifest["chosen_step"]) == ("last", STEPS)


@pytest.mark.slow
def test_a_step_without_a_number_stops_the_run_where_that_is_asked_and_names_the_good_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(DivergedError, match=rf"by step 8 .*the last good checkpoint is \S*/{folder_name(4)}; lower"):
        run(tmp_path, monkeypatch, log_steps=4)


@pytest.mark.slow
def test_a_validation_that_the_kernel_kills_costs_its_figure_and_not_the_run(tmp_path, monkeypatch):
    from biomedclip_ray.train import train as module
    from biomedclip_ray.train import validate

    def deadly(config: Any, place: Any) -> Any:
        class Deadly(validate.Validation):
            def __call__(self, checkpoint: Any) -> dict[str, float]:
                import os
                import signal

                import ray

                from biomedclip_ray.train import validate

                @ray.remote
                def dies(*rest: Any) -> None:
                    os.kill(os.getpid(), signal.SIGKILL)

                validate._measure = dies
                return validate.Validation.__call__(self, checkpoint)

        return Deadly(place.uri, place.at("start").uri, 0.25, 0.0)

    monkeypatch.setattr(module, "_validation", deadly)
    pairs, corpus = tiny.products(tmp_path)
    config = tiny.config(tmp_path, epochs=11.5 * 32 / 72, validation_pairs=7, resources={"max_failures": 0})
    product = train.run(config, pairs, corpus).product
    assert (product.manifest["chosen_by"], product.manifest["steps"]) == ("last", STEPS)


@pytest.mark.slow
def test_a_clip_in_the_published_format_is_trained_on(tmp_path):
    pairs, corpus = tiny.products(tmp_path)
    bert, folder = tmp_path / "bert", tmp_path / "published"
    bert.mkdir()
    folder.mkdir()
    make_published(folder, make_bert(bert))
    base = tiny.config(tmp_path, batch=8, micro_batches=2, epochs=2.5 * 8 / 72, lr=1e-4, warmup_steps=1)
    raw = base.model_dump(mode="json") | {"model": {"bundle": f"local-dir:{folder}"}}
    product = train.run(parse(raw, "test"), pairs, corpus).product
    assert product.manifest["steps"] == 3 == len(read(product.place))
    assert all(str(folder) in start for start in product.manifest["starts"].values())
    before, after = (Encoder.load(uri, device="cpu") for uri in (folder, product.place.at("bundle").uri))
    texts = ["3 round red cells", "1 square lung"]
    for one, other in (
        (before.encode_text(texts), after.encode_text(texts)),
        (
            before.encode_images([tiny.picture("red", "round", 3)]),
            after.encode_images([tiny.picture("red", "round", 3)]),
        ),
    ):
        likeness = (one * other).sum(1)  # what was learned moved both towers, from where they were
        assert likeness.min() > 0.5 and np.abs(one - other).max() > 1e-4
