"""A Ray cluster of several nodes on one machine, each node a process group of its own, which tests kill and replace."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.cluster.conftest import PATIENCE_S, REPO
from tests.processes import descendants, survivors

RAY = str(Path(sys.executable).parent / "ray")


class Cluster:
    """A head with ports, folder and token of its own, and nodes that join it; each in its own process group."""

    def __init__(self, home: Path, cpus: int, environment: dict[str, str] | None = None) -> None:
        """`environment`: more of it, for every process."""
        self.folder = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))  # Ray's sockets allow a path of 107 bytes
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_health_check_period_ms": "1000",  # a killed node is noticed after 5 s instead of 15
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        subprocess.run([RAY, "get-auth-token", "--generate"], env=self.env, check=True, capture_output=True)
        gcs, self.dashboard, agent, client = _free_ports(4)
        self.address = f"127.0.0.1:{gcs}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.start(
            *("--head", f"--port={gcs}", f"--dashboard-port={self.dashboard}", f"--num-cpus={cpus}"),
            *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
            *(f"--temp-dir={self.folder}", "--node-ip-address=127.0.0.1"),
        )

    def start(self, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start a node and wait until it is up."""
        log = self.folder / f"node-{len(self.nodes)}.log"
        command = [*prefix, RAY, "start", "--block", "--disable-usage-stats", *arguments]
        with log.open("wb") as output:
            node = subprocess.Popen(
                command, env=self.env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.nodes.append(node)
        deadline = time.monotonic() + PATIENCE_S
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return node

    def submit(self, *entrypoint: str) -> subprocess.Popen[str]:
        command = [RAY, "job", "submit", "--address", f"http://127.0.0.1:{self.dashboard}", "--working-dir", ".", "--"]
        return subprocess.Popen(
            [*command, *entrypoint], cwd=REPO, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def close(self) -> None:
        for node in reversed(self.nodes):
            kill_node(node)
        shutil.rmtree(self.folder, ignore_errors=True)


def kill_node(node: subprocess.Popen[bytes]) -> None:
    """End a node hard, with everything it runs."""
    family = descendants(node.pid)
    for pid in {node.pid, *family}:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    node.wait()
    assert survivors(family) == set()


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
