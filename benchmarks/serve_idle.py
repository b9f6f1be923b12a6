"""Memory of a server that nobody asks, and of the packages behind it alone: the floor below which it cannot be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def packages_gb(port: int) -> float:
    """PSS of a Ray of its own and Serve with two replicas that import what an ingress and an engine need, and do
    nothing else: no model, no index, no route of ours.
    """
    import ray
    from fastapi import FastAPI
    from ray import serve

    # Classes made here are sent to the workers whole, which have no benchmarks/ to import them from.
    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    class Engine:
        def __init__(self) -> None:
            import lance
            import open_clip
            import torch

            self.used = (lance, open_clip, torch)

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    @serve.ingress(FastAPI())
    class Ingress:
        def __init__(self, engine: Any) -> None:
            import mcp.server.mcpserver
            import PIL.Image

            self.used = (mcp.server.mcpserver, PIL.Image, engine)

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(Ingress.bind(Engine.bind()))
        return pss_gb()
    finally:
        serve.shutdown()
        ray.shutdown()


def pss_gb() -> float:
    """Proportional set size of every process below this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # ended meanwhile
                continue
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    total = 0
    for pid in ours - {os.getpid()}:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**20
