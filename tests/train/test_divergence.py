"""A loss that rose and stays there is lost; spikes, noise, slow starts and warm-ups are not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from biomedclip_ray.train.divergence import Divergence

GUESS = math.log(4096)


def lost_at(losses, warmup: int = 200, patience: int | None = 100, every: int = 10) -> tuple[int | None, int | None]:
    """(step at which the run ends, since when the loss was too high) for a loss as a function of the step."""
    trend = Divergence(GUESS, warmup, patience)
    for step in range(every, 3000, every):
        trend.read(step, float(losses(step)))
        if trend.lost(step):
            return step, trend.since
    return None, None


def healthy(step: int) -> float:
    noise = np.random.default_rng(step).normal(0, 0.15)
    return 1.2 + (GUESS + 2 - 1.2) * math.exp(-step / 300) + noise


@pytest.mark.parametrize(
    ("after", "ends"),
    [
        (lambda step: healthy(step), None),
        (lambda step: GUESS, (1110, 1010)),  # every vector is the same
        (lambda step: 2 + (step - 1000) / 100, (1390, 1290)),  # it creeps upward
        (lambda step: 30.0, (1110, 1010)),
        (lambda step: 9.0 if step < 1090 else healthy(step), None),  # a spike that comes back
        (lambda step: math.nan if step < 1400 else healthy(step), None),  # on_nan decides on those
        (lambda step: 7.0 if step % 100 == 0 else healthy(step), None),  # odd batches
    ],
)
def test_a_run_is_lost_where_its_loss_does_not_come_back(after, ends):
    assert lost_at(lambda step: after(step) if step > 1000 else healthy(step)) == (ends or (None, None))


def test_what_has_learned_nothing_yet_has_its_warm_up_to_come_down():
    assert lost_at(lambda step: max(GUESS, 12 - step / 100)) == (None, None)
    assert lost_at(lambda step: GUESS + 1e-3) == (None, None)  # that is stuck, which is another warning
    assert lost_at(lambda step: 9 + step / 1000) == (310, 210)
    assert lost_at(lambda step: 9 + step / 1000, patience=None) == (None, None)


def test_what_the_best_was_comes_back_with_the_checkpoint():
    trend = Divergence(GUESS, 200, 100, best=1.5)
    assert trend.line == pytest.approx((1.5 + GUESS) / 2)
