"""kill -9 at random moments of ingest and of preprocess, ten times each: drivers, workers, nodes.

The rows are those of a run that nobody disturbed, finished parts stay as they are, and only parts in flight are done
again.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from biomedclip_ray.schema import Reason
from tests.cluster.conftest import ARTICLES_PER_PART, PATIENCE_S, Driver, Workflow, is_picture, is_xml, tables
from tests.cluster.nodes import Cluster, kill_node
from tests.conftest import S3
from tests.processes import descendants, is_busy_worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

KILLS = 10
CPUS = 2
FETCHED = {"ingest": is_xml, "preprocess": is_picture}


class Disturbed:
    """Runs of the workflow, from an empty root and from another once that one is finished, until there
    were ten kills.
    """

    def __init__(self, stage: str, source: str, s3: S3, folder: Path, undisturbed: dict[str, pa.Table]) -> None:
        self.stage, self.source, self.s3, self.folder, self.undisturbed = stage, source, s3, folder, undisturbed
        ledgers = [table for name, table in undisturbed.items() if "/ledger/" in name]
        self.wrong_md5 = sum(table["reason"].to_pylist().count(Reason.MD5_MISMATCH) for table in ledgers)
        self.moments = random.Random(f"{folder.name} {stage}")
        self.kills = 0
        self.finished: list[Path] = []
        self._workflow: Workflow | None = None

    def workflows(self) -> Iterator[Workflow]:
        for number in itertools.count():
            if self.kills == KILLS:
                return
            folder = self.folder / str(number)
            folder.mkdir()
            self._workflow = Workflow(folder, self.source)
            self.s3.gets.clear()
            before = self.kills
            yield self._workflow
            self._assert_little_was_fetched_again(self.kills - before)
            self.finished.append(self._workflow.root)

    def at_work(self, driver: Driver) -> bool:
        """Wait for a random moment in which the stage has begun; False where the driver has ended with exit 0."""
        begun = self._fetched()
        deadline = time.monotonic() + PATIENCE_S
        moment = self.moments.uniform(0, 2)
        while driver.process.poll() is None:
            assert time.monotonic() < deadline, driver.output
            if self._fetched() > begun:
                time.sleep(moment)
                return driver.process.poll() is None
            time.sleep(0.02)
        assert driver.process.returncode == 0, driver.output
        return False

    def _fetched(self) -> int:
        return sum(map(FETCHED[self.stage], self.s3.gets))

    def _assert_little_was_fetched_again(self, kills: int) -> None:
        keys = Counter(filter(FETCHED[self.stage], self.s3.gets))
        a_part = ARTICLES_PER_PART * max(Counter(key.partition("/")[0] for key in keys).values())
        # a wrong md5 is asked for once more by any run
        assert keys.total() - len(keys) - self.wrong_md5 <= kills * CPUS * a_part

    def rows_that_differ(self) -> list[str]:
        """Files of any run whose rows are not those of an undisturbed one, or that only one of the two has."""
        differ = []
        for root in self.finished:
            found = tables(root)
            for name in sorted({*found, *self.undisturbed}):
                if name not in found or name not in self.undisturbed or not found[name].equals(self.undisturbed[name]):
                    differ.append(f"{root.name}: {name}")
        return differ

    def close(self) -> None:
        self.s3.delay_s = 0.0
        if self._workflow:
            self._workflow.close()


@pytest.fixture(params=FETCHED)
def disturbed(
    request: pytest.FixtureRequest, source: str, undisturbed: dict[str, pa.Table], s3_server: S3, tmp_path: Path
) -> Iterator[Disturbed]:
    s3_server.delay_s = 0.2
    runs = Disturbed(request.param, source, s3_server, tmp_path, undisturbed)
    yield runs
    runs.close()


def test_drivers_of_clusters_of_other_sizes_go_on_where_the_killed_one_stopped(disturbed: Disturbed) -> None:
    clusters = [Cluster(disturbed.folder, cpus) for cpus in (CPUS, 1)]
    try:
        for workflow in disturbed.workflows():
            done: dict[Path, int] = {}
            while True:
                cluster = clusters[disturbed.kills % 2]
                workflow.env |= cluster.env | {"RAY_ADDRESS": cluster.address}
                driver = workflow.start()
                if disturbed.kills == KILLS or not disturbed.at_work(driver):
                    break
                driver.kill()
                disturbed.kills += 1
                assert {path: path.stat().st_mtime_ns for path in done} == done
                done |= {path: path.stat().st_mtime_ns for path in workflow.done(disturbed.stage)}
            assert driver.wait() == 0, driver.output
    finally:
        disturbed.close()
        for cluster in clusters:
            cluster.close()
    assert disturbed.kills == KILLS and disturbed.finished
    assert disturbed.rows_that_differ() == []


def test_workers(disturbed: Disturbed) -> None:
    def kill_one(driver: Driver) -> bool:
        busy = sorted(filter(is_busy_worker, descendants(driver.pid)))
        if busy:
            os.kill(disturbed.moments.choice(busy), signal.SIGKILL)
        return bool(busy)

    for workflow in disturbed.workflows():
        _go_on(disturbed, workflow.start(), kill_one)
    assert disturbed.kills == KILLS and disturbed.finished
    assert disturbed.rows_that_differ() == []


def test_nodes(disturbed: Disturbed) -> None:
    cluster = Cluster(disturbed.folder, cpus=1)
    try:
        node = cluster.start(f"--address={cluster.address}", "--num-cpus=1")

        def kill_and_replace(driver: Driver) -> bool:
            nonlocal node
            busy = any(map(is_busy_worker, descendants(node.pid)))
            if busy:
                kill_node(node)
                node = cluster.start(f"--address={cluster.address}", "--num-cpus=1")
            return busy

        for workflow in disturbed.workflows():
            workflow.env |= cluster.env | {"RAY_ADDRESS": cluster.address}
            _go_on(disturbed, workflow.start(), kill_and_replace)
    finally:
        disturbed.close()
        cluster.close()
    assert disturbed.kills == KILLS and disturbed.finished
    assert disturbed.rows_that_differ() == []


def _go_on(disturbed: Disturbed, driver: Driver, kill: Callable[[Driver], bool]) -> None:
    """Kill at random moments of the stage until the driver ends or there were enough kills."""
    while disturbed.kills < KILLS and disturbed.at_work(driver):
        disturbed.kills += kill(driver)
    assert driver.wait() == 0, driver.output
