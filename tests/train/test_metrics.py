"""metrics.jsonl goes on after a restart, and a loss that stays at guessing is noticed."""

from __future__ import annotations

import json
import logging
import math
import time

from biomedclip_ray.storage import Place
from biomedclip_ray.train.journal import PairsLog, attempts, begin, trained_pairs
from biomedclip_ray.train.metrics import MetricsLog, Watch, guessing, is_stuck, read


def line(step: int, loss: float = 2.0) -> dict[str, float]:
    return {
        "step": step,
        "loss": loss,
        "guess": guessing(128),
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


def test_a_loss_that_stays_at_guessing_is_stuck():
    assert math.isclose(guessing(128), 4.852, abs_tol=1e-3)
    assert is_stuck([line(step, 4.84) for step in range(0, 200, 10)])
    assert not is_stuck([line(step, 4.84 - step / 100) for step in range(0, 200, 10)])
    assert not is_stuck([line(step, 4.84) for step in range(0, 30, 10)])
    assert not is_stuck([])


def test_the_driver_tells_rate_and_time_left_and_warns_when_stuck(tmp_path, caplog):
    place = Place(str(tmp_path))
    with caplog.at_level(logging.INFO), Watch(place, 300, 0, line_s=0.02):
        place.write("metrics.jsonl", "".join(json.dumps(line(s, 4.85)) + "\n" for s in range(10, 110, 10)).encode())
        time.sleep(0.2)
    assert (
        "step 100 of 300, loss 4.850 (guessing 4.852), 10 pairs/s, 10% waiting for data, 10.0 steps/s, 0:00:20 left"
        in caplog.text
    )
    assert caplog.text.count("still that of guessing") == 1


def test_attempts_are_numbered_and_positions_recorded(tmp_path):
    place = Place(str(tmp_path))
    facts = {"first_step": 1, "steps": 9, "epoch": 0.0, "seed": 3, "workers": [{"pid": 1}]}
    assert begin(place, 0, facts) == 1
    assert begin(place, 0, {**facts, "first_step": 5}) == 2
    assert [(one["attempt"], one["first_step"]) for one in attempts(place)] == [(1, 1), (2, 5)]
    for rank in (0, 1):
        records = PairsLog(place, 2, rank)
        records.add(5, [rank, rank + 2], flush=False)
        records.add(6, [rank + 4, rank + 6], flush=True)
    assert trained_pairs(place) == {(2, 5): [0, 1, 2, 3], (2, 6): [4, 5, 6, 7]}
