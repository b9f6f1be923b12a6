"""A node that is told to go: training saves at once, and goes on where it was on the node that comes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import tiny

from biomedclip_ray.train.checkpoint import steps_done
from biomedclip_ray.train.journal import attempts
from biomedclip_ray.train.metrics import read
from biomedclip_ray.train.train import train

STEPS = 600


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_preempted_node_leaves_a_checkpoint_just_in_time(tmp_path, monkeypatch, workers):
    """Between two lines of the log: only the first and the last step are logged here."""
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    ray.init(cluster.address, log_to_driver=False)
    try:
        leaving = cluster.add_node(num_cpus=2)
        config = tiny.config(
            tmp_path,
            epochs=(STEPS - 0.5) * 32 / 72,
            checkpoint_steps=10_000,
            log_steps=10_000,
            resources={"workers": workers, "cpus_per_worker": 2 / workers},
        )
        pairs, corpus = tiny.products(tmp_path)
        product = train.plan(config, pairs, corpus)
        trainer = threading.Thread(target=train, args=(config, pairs, corpus))
        trainer.start()
        _until(lambda: read(product.place))
        time.sleep(2)  # some steps
        warning = [
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "reclaimed",
            "--deadline-remaining-seconds",
            "600",
        ]
        drain = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "drain-node",
            "--address",
            cluster.address,
            "--node-id",
            leaving.node_id,
        ]
        subprocess.run([*drain, *warning], check=True, env=dict(os.environ), timeout=60)
        _until(lambda: steps_done(product.place) > 1)
        saved = steps_done(product.place)
        cluster.remove_node(leaving, allow_graceful=False)
        cluster.add_node(num_cpus=2)
        trainer.join(240)
        assert not trainer.is_alive() and product.finished
        assert [attempt["first_step"] for attempt in attempts(product.place)] == [1, saved + 1]
        assert 1 < saved < STEPS
        assert [line["step"] for line in read(product.place)] == [1, saved + 1, STEPS]
    finally:
        ray.shutdown()
        cluster.shutdown()


def _until(true) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
