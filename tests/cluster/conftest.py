"""The workflow as its user starts it: a process of its own with a Ray of its own, which tests kill, interrupt and
repeat.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedclip_ray.sample import make_bucket
from tests.conftest import S3
from tests.processes import command, descendants, is_worker, survivors

REPO = Path(__file__).resolve().parents[2]
ARTICLES_PER_PART = 2
PATIENCE_S = 120  # far above what anything here takes on an idle machine


class Driver:
    """`python workflows/biomedclip.py CONFIG ...` as the leader of its own process group, its output in a file."""

    def __init__(self, arguments: list[str], log: Path, env: dict[str, str]) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(REPO / "workflows" / "biomedclip.py"), *arguments],
                cwd=REPO,
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> int:
        """The exit code, once the process has ended."""
        return self.process.wait(PATIENCE_S)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that the driver does; fails with the driver's output if it ends before."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s:\n{self.output}"
            time.sleep(0.05)

    def kill(self) -> set[int]:
        """kill -9; returns its processes, which should end by themselves.

        Ray's two agents are not among them: they hold no CPU, and go after 61 s of telling a store that died with the
        driver.
        """
        family = {pid for pid in descendants(self.pid) if not command(pid).startswith("ray::") or is_worker(pid)}
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        return family


class Workflow:
    """Starts drivers on one bucket; what was started and still runs at the end of the test is killed."""

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        self.drivers: list[Driver] = []
        self.config = folder / "config.yaml"
        self.config.write_text(
            f"root: {folder / 'root'}\n"
            f"source: {{uri: '{source}', articles_per_part: {ARTICLES_PER_PART}, resources: {{deadline_s: 600}}}}\n"
        )
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"}

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def start(self, arguments: str = "--until curate") -> Driver:
        log = self.folder / f"driver-{len(self.drivers)}.log"
        driver = Driver([str(self.config), *shlex.split(arguments)], log, self.env)
        self.drivers.append(driver)
        return driver

    def run(self, arguments: str = "--until curate") -> Driver:
        """Run to the end; fails with the output where that is not 0."""
        driver = self.start(arguments)
        assert driver.wait() == 0, driver.output
        return driver

    def done(self, stage: str) -> list[Path]:
        """The files of the parts that a stage has finished, data and ledger."""
        ledgers = sorted(self.root.glob(f"{stage}/*/ledger/part-*.parquet"))
        return [path for ledger in ledgers for path in (ledger, ledger.parents[1] / "data" / ledger.name)]

    def close(self) -> None:
        for driver in self.drivers:
            if driver.process.poll() is None:
                survivors(driver.kill())


def is_xml(key: str) -> bool:
    return key.endswith(".xml")


def is_picture(key: str) -> bool:
    return key.endswith((".jpg", ".gif", ".png", ".tif"))


def tables(root: Path) -> dict[str, pa.Table]:
    """Every file of every product below a root with its rows, data and ledger, by name."""
    return {path.relative_to(root).as_posix(): pq.read_table(path) for path in sorted(root.glob("*/*/*/*.parquet"))}


@pytest.fixture(scope="session")
def source(s3_server: S3, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sample's articles with all their planted faults, on S3."""
    folder = tmp_path_factory.mktemp("sample") / "bucket"
    make_bucket(folder, n_articles=30, seed=11)
    return s3_server.upload(folder)


@pytest.fixture(scope="module")
def workflow(source: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workflow]:
    workflow = Workflow(tmp_path_factory.mktemp("run"), source)
    yield workflow
    workflow.close()


@pytest.fixture(scope="session")
def undisturbed(source: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """The rows of every product of a run that nobody disturbed."""
    workflow = Workflow(tmp_path_factory.mktemp("undisturbed"), source)
    workflow.run()
    return tables(workflow.root)
