"""workers=[1, 2] on a cluster that grows: the second worker joins, and batch, rate and schedule stay what the config says."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import tiny

from biomedclip_ray.train.journal import attempts, trained_pairs
from biomedclip_ray.train.metrics import read
from biomedclip_ray.train.order import total_steps
from biomedclip_ray.train.step import learning_rate
from biomedclip_ray.train.train import plan, train

STEPS = 800


@pytest.mark.slow
def test_a_node_that_comes_is_used_and_no_batch_changes(tmp_path, monkeypatch):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    ray.init(cluster.address, log_to_driver=False)
    try:
        config = tiny.config(
            tmp_path,
            epochs=(STEPS - 0.5) * 32 / 72,
            checkpoint_steps=50,
            log_steps=1,
            log_pairs=True,
            resources={"workers": [1, 2], "cpus_per_worker": 2, "threads": 1, "resize_interval_s": 2},
        )
        pairs, corpus = tiny.products(tmp_path)
        product = plan(config, pairs, corpus)
        trainer = threading.Thread(target=train, args=(config, pairs, corpus))
        trainer.start()
        deadline = time.monotonic() + 240
        while len(read(product.place)) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        cluster.add_node(num_cpus=2)
        trainer.join(300)
        assert not trainer.is_alive() and product.finished
        assert [len(attempt["workers"]) for attempt in attempts(product.place)] == [1, 2]
        lines = read(product.place)
        assert total_steps(72, config.train.epochs, 32) == STEPS
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        rates = [learning_rate(number, config.train.lr, config.train.warmup_steps, STEPS) for number in range(STEPS)]
        assert [line["lr"] for line in lines] == pytest.approx(rates)
        last = {step: positions for (_, step), positions in trained_pairs(product.place).items()}
        assert all(positions == list(range((step - 1) * 32, step * 32)) for step, positions in last.items())
    finally:
        ray.shutdown()
        cluster.shutdown()
