"""workflows/submit.py against a cluster with a token, whose dashboard is reached through a line that can be cut."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from biomedclip_ray.sample import make_bucket
from tests.cluster.conftest import PATIENCE_S, REPO, is_xml
from tests.cluster.nodes import Cluster
from tests.conftest import S3


class Line:
    """A TCP line to a port of this machine, cut and mended at will."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.open = True
        self.ends: list[socket.socket] = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        self.open = False
        for end in self.ends:
            end.close()
        self.ends.clear()

    def mend(self) -> None:
        self.open = True

    def _serve(self) -> None:
        while True:
            near, _ = self.server.accept()
            if not self.open:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.port))
            self.ends += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            sink.close()


class Submitter:
    """`python workflows/submit.py ...` with a terminal of its own."""

    started: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self, cluster: Cluster, log: Path, *arguments: str, **env: str) -> None:
        self.log = log
        self.terminal, end = pty.openpty()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "workflows/submit.py", *arguments],
                cwd=REPO,
                env={k: v for k, v in cluster.env.items() if k != "RAY_AUTH_MODE"} | env,
                stdin=end,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(self.process)
        os.close(end)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"{what}:\n{self.output}"
            time.sleep(0.1)

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """A test that fails leaves no submitter behind."""
    yield
    for process in Submitter.started:
        if process.poll() is None:
            process.kill()
            process.wait()
    Submitter.started.clear()


@pytest.fixture(scope="module")
def cluster(s3_server: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("home"), cpus=2)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def bucket(s3_server: S3, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("submit") / "bucket"
    make_bucket(folder, n_articles=12, seed=5)
    return s3_server.upload(folder)


def arguments(line: Line, bucket: str, root: Path, *more: str) -> list[str]:
    config = ["workflows/configs/sample.yaml", f"source.uri={bucket}", "source.articles_per_part=4", f"root={root}"]
    return ["--to", line.address, *config, "source.resources.deadline_s=600", "--until", "ingest", *more]


def records(root: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted((root / "runs").glob("*.json"))]


def test_a_cut_connection_a_second_submission_and_wrong_tokens_cost_the_job_nothing(
    cluster: Cluster, bucket: str, s3_server: S3, tmp_path: Path
) -> None:
    line, root = Line(cluster.dashboard), tmp_path / "root"
    command = arguments(line, bucket, root)
    s3_server.hold(is_xml, after=4)
    first = Submitter(cluster, tmp_path / "first.log", *command)
    try:
        first.until(lambda: "ingest: " in first.output, "ingest has begun")
        second = Submitter(cluster, tmp_path / "second.log", *command)
        assert second.wait() == 2, second.output
        [said] = [text for text in second.output.splitlines() if text.startswith("error: ")]
        assert "works on" in said and str(root) in said
        nobody = Submitter(
            cluster, tmp_path / "nobody.log", *arguments(line, bucket, tmp_path / "b"), HOME=str(tmp_path)
        )
        assert nobody.wait() == 2, nobody.output
        assert nobody.output.splitlines() == [
            f"error: {line.address}: the cluster asks for a token and none was sent; put the head's "
            "~/.ray/auth_token into the "
            "same place here, or set RAY_AUTH_TOKEN"
        ]
        wrong = Submitter(
            cluster, tmp_path / "wrong.log", *arguments(line, bucket, tmp_path / "b"), RAY_AUTH_TOKEN="0" * 64
        )
        assert wrong.wait() == 2, wrong.output
        [said] = wrong.output.splitlines()
        assert said.startswith(f"error: {line.address}: the token that was sent is not the cluster's; take the head's")
        line.cut()
        first.until(lambda: "no answer for" in first.output, "the cut was noticed")
        line.mend()
        first.until(lambda: "the cluster answers again" in first.output, "the line is mended")
        s3_server.release()
        assert first.wait() == 0, first.output
    finally:
        s3_server.release()
        first.process.kill()
    for once in ("catalog: ", "ingest: ", "Report: "):
        assert len([text for text in first.output.splitlines() if once in text and "parts" not in text]) == 1, (
            first.output
        )
    [record] = records(root)
    assert (record["state"], record["exit_code"]) == ("done", 0)
    assert f"done: {root}/runs/{record['id']}.json" in first.output


def test_the_exit_code_is_the_runs_own(cluster: Cluster, bucket: str, tmp_path: Path) -> None:
    line, root = Line(cluster.dashboard), tmp_path / "root"
    refused = Submitter(cluster, tmp_path / "log", *arguments(line, bucket, root, "ingest.resources.num_cpus=64"))
    assert refused.wait() == 2, refused.output
    [record] = records(root)
    assert record["state"] == "refused"
    assert record["said"] == ["error: ingest.resources.num_cpus=64, but the cluster has 2 CPUs; lower it"]


def test_a_job_that_the_cluster_does_not_know_is_not_waited_for(cluster: Cluster, bucket: str, tmp_path: Path) -> None:
    line, root = Line(cluster.dashboard), tmp_path / "root"
    follower = Submitter(cluster, tmp_path / "log", "--follow", "nobody", *arguments(line, bucket, root))
    assert follower.wait() == 1, follower.output
    assert (
        f"the run never began: there is no {root}/runs/nobody.json; the cluster, which knows no job nobody, ended"
        in (follower.output)
    )


def test_ctrl_c_asks_and_a_job_that_is_stopped_ends_in_order(
    cluster: Cluster, bucket: str, s3_server: S3, tmp_path: Path
) -> None:
    line, root = Line(cluster.dashboard), tmp_path / "root"
    s3_server.hold(is_xml, after=4)
    one = Submitter(cluster, tmp_path / "one.log", *arguments(line, bucket, root))
    try:
        one.until(lambda: "ingest: " in one.output, "ingest has begun")
        one.process.send_signal(signal.SIGINT)
        one.until(lambda: "leave it running?" in one.output, "it asks")
        os.write(one.terminal, b"leave\n")
        assert one.wait() == 130, one.output
        [record] = records(root)
        assert record["exit_code"] is None  # it goes on
        again = Submitter(
            cluster, tmp_path / "again.log", "--follow", str(record["id"]), *arguments(line, bucket, root)
        )
        again.until(lambda: "ingest: " in again.output, "the log is there again")
        again.process.send_signal(signal.SIGINT)
        again.until(lambda: "leave it running?" in again.output, "it asks")
        os.write(again.terminal, b"stop\n")
        assert again.wait() == 130, again.output
    finally:
        s3_server.release()
    [record] = records(root)
    assert (record["state"], record["exit_code"]) == ("interrupted", 130)
