"""The budget of requests against a source that refuses above its limit; time is told, so these take milliseconds."""

from __future__ import annotations

import time

import pytest

from biomedclip_ray.run.pace import CUT, START, Budget, Pace

DT = 0.05


class Source:
    """Answers `limit` requests in each second and refuses the rest of it."""

    def __init__(self, limit: float) -> None:
        self.limit, self.second, self.left = limit, -1, 0.0
        self.answered = self.refused = 0.0

    def take(self, now: float, requests: float) -> float:
        """How many of them are refused."""
        if int(now) != self.second:
            self.second, self.left = int(now), self.limit
        good = min(requests, self.left)
        self.left -= good
        self.answered += good
        self.refused += requests - good
        return requests - good


class Sender:
    """A process that would send `wants` requests a second, and reports when it was told to."""

    def __init__(self, name: str, wants: float) -> None:
        self.name, self.wants = name, wants
        self.rate, self.due, self.last = START / 10, 0.0, 0.0
        self.sent = self.refused = 0.0
        self.total = 0.0

    def step(self, now: float, source: Source, budget: Budget) -> None:
        requests = min(self.rate, self.wants) * DT
        self.sent += requests
        self.total += requests
        self.refused += source.take(now, requests)
        if now >= self.due:
            told = budget.report(
                self.name, now, round(self.sent), round(self.refused), self.wants > self.rate, now - self.last
            )
            (self.rate, pause), self.last = told, now
            self.due = now + pause
            self.sent -= round(self.sent)
            self.refused -= round(self.refused)


def run(limit: float, wants: list[float], seconds: float = 60.0) -> tuple[Source, Budget, list[Sender]]:
    source, budget = Source(limit), Budget(0.0)
    senders = [Sender(f"process {n}", each) for n, each in enumerate(wants)]
    for step in range(1, int(seconds / DT) + 1):
        for sender in senders:
            sender.step(step * DT, source, budget)
    return source, budget, senders


@pytest.mark.parametrize("limit", [200, 1000])
@pytest.mark.parametrize("processes", [1, 4, 16])
def test_the_limit_of_a_source_is_found_and_used_whoever_sends(limit: int, processes: int) -> None:
    source, _, _ = run(limit, [1e6] * processes)
    assert source.answered >= 0.95 * limit * 60
    assert source.refused <= 0.05 * limit * 60


@pytest.mark.parametrize(("limit", "processes"), [(200, 64), (5500, 1), (5500, 64)])
def test_many_processes_and_a_long_way_up_cost_little(limit: int, processes: int) -> None:
    source, _, _ = run(limit, [1e6] * processes)
    assert source.answered >= 0.9 * limit * 60
    assert source.refused <= 0.1 * limit * 60


def test_a_source_that_gives_less_later_is_believed() -> None:
    source, budget, senders = run(1000, [1e6] * 4, 20.0)
    source.limit, before = 300, source.answered
    for step in range(int(20 / DT) + 1, int(50 / DT) + 1):
        for sender in senders:
            sender.step(step * DT, source, budget)
    assert source.answered - before >= 0.95 * 300 * 30
    assert budget.rate <= 300 / CUT


def test_processes_that_need_little_leave_the_rest_to_the_others() -> None:
    source, _, senders = run(1000, [10, 10, 10, 1e6])
    assert source.answered >= 0.93 * 1000 * 60
    assert [round(sender.total / 60) for sender in senders[:3]] == pytest.approx([10, 10, 10], abs=1)


def test_a_rate_that_nobody_uses_does_not_grow() -> None:
    _, budget, _ = run(1e9, [20.0] * 4)
    assert budget.rate <= 2 * START


def test_a_process_that_is_gone_leaves_its_share() -> None:
    source, budget, (one, _) = run(400, [1e6] * 2, 20.0)
    for step in range(int(20 / DT) + 1, int(60 / DT) + 1):
        one.step(step * DT, source, budget)
    assert list(budget.members) == [one.name]
    assert one.rate == pytest.approx(budget.rate)


def test_a_thousand_processes_report_less_often_each() -> None:
    budget = Budget(0.0)
    for n in range(4000):
        _, pause = budget.report(f"process {n}", 0.1, 1, 0, True, 0.1)
    assert pause == 4.0


def test_after_a_refusal_all_threads_of_a_process_wait_a_little_and_longer_each_time() -> None:
    pace = Pace("a source that refuses")
    waited = []
    for _ in range(8):
        pace.refused()
        begun = time.monotonic()
        pace.wait(begun + 60)
        waited.append(time.monotonic() - begun)
    assert min(waited) >= 0.025 and max(waited) >= 0.2


def test_a_turn_that_comes_after_the_deadline_is_said_at_once() -> None:
    pace = Pace("a source that is waited for")
    for _ in range(20):  # until it has been told its share
        pace.wait(time.monotonic() + 60)
    for _ in range(6):
        pace.refused()
        pace.wait(time.monotonic() + 60)
    pace.refused()
    with pytest.raises(TimeoutError, match="its turn comes after the deadline"):
        pace.wait(time.monotonic())
