"""workers=[1, 2] on a cluster that grows and shrinks: batches, rate, schedule and losses stay those of one worker."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import tiny

from biomedclip_ray.config import Config
from biomedclip_ray.train.checkpoint import steps_done
from biomedclip_ray.train.journal import attempts, trained_pairs
from biomedclip_ray.train.metrics import read
from biomedclip_ray.train.order import total_steps
from biomedclip_ray.train.step import learning_rate
from biomedclip_ray.train.train import train

STEPS, LOG_STEPS = 800, 5


def config(root: Path, workers: int | list[int]) -> Config:
    return tiny.config(
        root,
        epochs=(STEPS - 0.5) * 32 / 72,
        lr=5e-4,
        checkpoint_steps=25,
        log_steps=LOG_STEPS,
        log_pairs=True,
        resources={"workers": workers, "cpus_per_worker": 2, "threads": 1, "resize_interval_s": 2},
    )


def until(reached: Callable[[], bool], trainer: threading.Thread) -> None:
    deadline = time.monotonic() + 240
    while not reached():
        assert trainer.is_alive() and time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_comes_is_used_one_that_goes_is_not_missed_and_no_batch_changes(tmp_path, monkeypatch):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    ray.init(cluster.address, log_to_driver=False)
    try:
        elastic = config(tmp_path / "elastic", [1, 2])
        pairs, corpus = tiny.products(elastic.root)
        product = train.plan(elastic, pairs, corpus)
        trainer = threading.Thread(target=train, args=(elastic, pairs, corpus))
        trainer.start()
        until(lambda: len(read(product.place)) >= 20, trainer)
        node = cluster.add_node(num_cpus=2)

        def two_have_saved() -> bool:
            begins = [one["first_step"] for one in attempts(product.place) if len(one["workers"]) == 2]
            return bool(begins) and steps_done(product.place) >= begins[-1]

        until(two_have_saved, trainer)
        cluster.remove_node(node, allow_graceful=False)
        trainer.join(300)
        assert not trainer.is_alive() and product.finished
        told = [(attempt["first_step"], len(attempt["workers"])) for attempt in attempts(product.place)]
        assert [workers for _, workers in told] == [1, 2, 1]
        assert told[0][0] < told[1][0] < told[2][0]  # what each of them trained was kept

        lines = {line["step"]: line for line in read(product.place)}
        assert total_steps(72, elastic.train.epochs, 32) == STEPS
        assert {1, *range(LOG_STEPS, STEPS + 1, LOG_STEPS)} <= lines.keys()
        for step, line in lines.items():
            assert line["lr"] == pytest.approx(learning_rate(step - 1, 5e-4, elastic.train.warmup_steps, STEPS))
        last = {step: positions for (_, step), positions in trained_pairs(product.place).items()}
        assert last == {step: list(range((step - 1) * 32, step * 32)) for step in range(1, STEPS + 1)}

        alone = config(tmp_path / "alone", 1)
        undisturbed = train.run(alone, *tiny.products(alone.root)).product
        expected = {line["step"]: line["loss"] for line in read(undisturbed.place)}
        for step in expected:
            assert lines[step]["loss"] == pytest.approx(expected[step], rel=1e-3), step
    finally:
        ray.shutdown()
        cluster.shutdown()
