"""metrics.jsonl goes on after a restart, and a loss that stays at the chance loss is noticed."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from biomedclip_ray.clip.loss import LOSSES
from biomedclip_ray.clip.loss.contrast import loss_from_features
from biomedclip_ray.run.telemetry import told
from biomedclip_ray.store.place import Place
from biomedclip_ray.train.journal import PairsLog, attempts, begin, trained_pairs
from biomedclip_ray.train.metrics import MetricsLog, Watch, is_stuck, read
from biomedclip_ray.train.step import learning_rate


def line(step: int, loss: float = 2.0, lr: float = 1e-3) -> dict[str, float]:
    return {
        "step": step,
        "loss": loss,
        "chance_loss": LOSSES["infonce"].chance(128),
        "lr": lr,
        "pairs_per_s": 10.0,
        "data_wait_share": 0.1,
        "seconds": step / 10,
    }


def test_lines_beyond_the_checkpoint_are_written_again(tmp_path):
    place = Place(str(tmp_path))
    first = MetricsLog(place, 0)
    for step in range(1, 8):
        first.line(line(step))
    first.flush()  # killed here; the newest checkpoint has five steps
    second = MetricsLog(place, 5)
    second.line(line(6, loss=1.5))
    second.close()
    assert [(now["step"], now["loss"]) for now in read(place)] == [(s, 2.0) for s in range(1, 6)] + [(6, 1.5)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_a_store_in_trouble_costs_no_line(tmp_path, monkeypatch, caplog):
    place = Place(str(tmp_path))
    log = MetricsLog(place, 0)
    log._flushed = 0.0
    with monkeypatch.context() as patch:
        patch.setattr(Place, "write", lambda *parts: (_ for _ in ()).throw(OSError("SLOW_DOWN")))
        log.line(line(1))
    assert "metrics could not be written (SLOW_DOWN)" in caplog.text
    log.line(line(2))
    log.close()
    assert [found["step"] for found in read(place)] == [1, 2]


def test_a_loss_that_stays_at_chance_is_stuck():
    assert math.isclose(LOSSES["infonce"].chance(128), 4.852, abs_tol=1e-3)
    assert is_stuck([line(step, 4.84) for step in range(0, 200, 10)])
    assert not is_stuck([line(step, 4.84 - step / 100) for step in range(0, 200, 10)])
    assert not is_stuck([line(step, 4.84) for step in range(0, 30, 10)])
    assert not is_stuck([])


def test_nobody_is_called_stuck_before_the_warm_up_is_over():
    warming = [line(step, 4.84, learning_rate(step, 1e-3, 2000, 9000)) for step in range(0, 4000, 10)]
    assert not is_stuck(warming[:200]) and not is_stuck(warming[:205])
    assert is_stuck(warming)


def test_chance_costs_the_sigmoid_loss_what_its_best_constant_does():
    image = text = torch.ones(12, 4) / 2  # all alike: every logit is one number
    sigmoid = LOSSES["sigmoid"]

    def constant(bias: float) -> float:
        return float(loss_from_features(sigmoid, image, text, torch.zeros(()), logit_bias=torch.tensor(bias)))

    losses = [constant(bias) for bias in np.arange(-6, 2, 0.01)]
    assert sigmoid.chance(12) == pytest.approx(min(losses), abs=1e-4)
    assert min(losses) < constant(0.0)


def test_the_driver_tells_rate_and_time_left_and_warns_when_stuck(tmp_path, caplog):
    place = Place(str(tmp_path))
    with caplog.at_level(logging.INFO), Watch(place, 300, 0, str, line_s=0.02):
        place.write("metrics.jsonl", "".join(json.dumps(line(s, 4.85)) + "\n" for s in range(10, 110, 10)).encode())
        time.sleep(0.2)
        assert time.time() - told("checkpoint_timestamp_seconds") < 60  # there is none yet: training has just begun
    assert (
        "step 100 of 300, loss 4.850 (chance 4.852), 10 pairs/s, 10% waiting for data, 10.0 steps/s, 0:00:20 left"
        in caplog.text
    )
    assert caplog.text.count("still the chance loss") == 1


def test_a_run_that_takes_no_step_is_told_why_again_and_again_and_one_that_does_is_not(tmp_path, caplog):
    place = Place(str(tmp_path))
    with caplog.at_level(logging.INFO), Watch(place, 300, 0, lambda: "no CPU is free", line_s=0.02, still_s=0.2):
        until(lambda: caplog.text.count("no step for 0 s: no CPU is free") >= 2)
        place.write("metrics.jsonl", (json.dumps(line(10, 4.85)) + "\n").encode())
        until(lambda: "step 10 of 300" in caplog.text)
    caplog.clear()
    with caplog.at_level(logging.INFO), Watch(place, 300, 0, lambda: "no CPU is free", line_s=0.02, still_s=60):
        until(lambda: "step 10 of 300" in caplog.text)
    assert "no CPU" not in caplog.text


def until(so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_attempts_are_numbered_and_positions_recorded(tmp_path, caplog):
    place = Place(str(tmp_path))
    facts = {"first_step": 1, "steps": 9, "epoch": 0.0, "seed": 3, "workers": [{"pid": 1}]}
    facts |= {"lr": 1e-4, "logit_scale": 14.28, "precision": "bf16"}
    assert begin(place, 0, facts) == 1
    with caplog.at_level(logging.INFO):
        assert begin(place, 0, {**facts, "first_step": 5, "epoch": 0.5, "lr": 4e-4}) == 2
    assert (
        "attempt 2 begins at step 5 of 9 (epoch 0.50, rate 0.0004, logit scale 14.28, bf16 without a loss scaler, "
        "seed 3, 1 workers)" in caplog.text
    )
    assert [(one["attempt"], one["first_step"]) for one in attempts(place)] == [(1, 1), (2, 5)]
    for rank in (0, 1):
        records = PairsLog(place, 2, rank)
        records.add(5, [rank, rank + 2], flush=False)
        records.add(6, [rank + 4, rank + 6], flush=True)
    assert trained_pairs(place) == {(2, 5): [0, 1, 2, 3], (2, 6): [4, 5, 6, 7]}
