"""The shipped application on a cluster of several nodes, brought up by the stage `deploy` in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from tests.cluster.conftest import PATIENCE_S, REPO, command, descendants
from tests.cluster.nodes import Cluster
from tests.ray.test_serve import drawn, free_port, make

DEPLOY = """
import sys
from pathlib import Path
from biomedclip_ray.config import load
from biomedclip_ray.run.connect import connect
from biomedclip_ray.serve.deploy import deploy
from tests.ray.test_serve import product
config, seed = load(sys.argv[1]), int(sys.argv[2])
connect()
deploy(config, *(product(Path(config.root), stage, seed) for stage in ("train", "embed")))
"""


class Served:
    """A cluster, what it serves, and its processes by what they are.

    Where there are nodes, the head holds no replica, and each node an encoder replica, an ingress and a proxy. All
    proxies share this machine's port, so that a client meets whichever lives, as behind a load balancer.
    """

    def __init__(self, folder: Path, nodes: int, settings: str = "", environment: dict[str, str] | None = None) -> None:
        """`settings`: of the section serve.resources. `environment`: more of it, for every process of Ray."""
        self.cluster = Cluster(folder, 0 if nodes else 2, environment)
        self.wanted, self.nodes = nodes, [self.node() for _ in range(nodes)]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = folder / "config.yaml"
        replicas = f"replicas: {nodes or 1}, ingress_replicas: {nodes or 1}, cpus_per_replica: 0.75, threads: 1"
        serve = f"max_body_bytes: 2_000_000, resources: {{port: {self.port}, {replicas}, {settings}}}"
        self.config.write_text(f"root: {folder}\nserve: {{{serve}}}\n")
        pictures, captions = drawn()
        self.bundles = [make(folder, seed, pictures, captions)[2].bundle_id for seed in (0, 1)]
        try:
            self.deploy(0)
        except BaseException:  # no test has it yet that would close it
            self.close()
            raise

    def node(self) -> subprocess.Popen[bytes]:
        """One more, with room for an encoder replica and an ingress, and for nothing else."""
        return self.cluster.start(f"--address={self.cluster.address}", "--num-cpus=1")

    def deploy(self, seed: int) -> None:
        """Serve the bundle that was made with this seed."""
        arguments = [sys.executable, "-c", DEPLOY, str(self.config), str(seed)]
        environment = {**self.cluster.env, "RAY_ADDRESS": self.cluster.address, "PYTHONPATH": str(REPO)}
        done = subprocess.run(
            arguments, cwd=REPO, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr

    def processes(self, name: str, node: subprocess.Popen[bytes] | None = None) -> list[int]:
        """Live processes of that name in Ray, on one node or on all."""
        nodes = [node] if node else [each for each in self.cluster.nodes if each.poll() is None]
        family = {pid for each in nodes for pid in descendants(each.pid)}
        return sorted(pid for pid in family if command(pid).startswith(f"ray::{name}"))

    def engines(self, node: subprocess.Popen[bytes] | None = None) -> list[int]:
        return self.processes("ServeReplica:biomedclip:Engine", node)

    def ingresses(self, node: subprocess.Popen[bytes] | None = None) -> list[int]:
        return self.processes("ServeReplica:biomedclip:Ingress", node)

    def proxies(self, node: subprocess.Popen[bytes] | None = None) -> list[int]:
        return self.processes("ProxyActor", node)

    def whole(self) -> None:
        """Until there are as many nodes as there were, each with an engine, an ingress and a proxy, and all answer."""
        while len(self.nodes) < self.wanted:
            self.nodes.append(self.node())

        def found() -> list[tuple[int, ...]]:
            return [tuple(len(of(node)) for of in (self.engines, self.ingresses, self.proxies)) for node in self.nodes]

        until(lambda: set(found()) == {(1, 1, 1)}, lambda: str(found()))
        until(lambda: all(ready(client) for client in new_clients(self.url, 12)), lambda: "not ready")

    def close(self) -> None:
        self.cluster.close()


def new_clients(url: str, number: int) -> Iterator[httpx.Client]:
    """Each with a connection of its own, so that they meet different proxies."""
    for _ in range(number):
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            yield client


def ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


def until(reached: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)
