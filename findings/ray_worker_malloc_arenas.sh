#!/usr/bin/env bash
# Guess: mallopt called at the start of an actor (trim and mmap thresholds at 1 GB, one arena) has glibc keep what the actor frees, as
# it does in a script: the next forward pass of a model on CPUs then touches no new page.
# Seen (ray 2.60.0, glibc 2.36): by the time that an actor's code runs, threads of the worker hold arenas of their own, and a thread that
# the actor starts to compute in is given one of those. They hold 64 MB at most: a block above that is mapped and given back at
# each use, 51,200 page faults for 200 MB, as if nothing had been set. The same three values as MALLOC_ARENA_MAX, MALLOC_MMAP_THRESHOLD_ and
# MALLOC_TRIM_THRESHOLD_ in the actor's runtime_env are there when the process starts: no fault.
# Matters for: whoever serves or embeds on CPUs with Ray (activations of a ViT-B/16 at a batch of 32 are 77 MB a layer).
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'ray==2.60.0'
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import ctypes
import logging
import resource
import sys
from concurrent.futures import ThreadPoolExecutor

import ray

SIZE = 200 << 20
PAGES = SIZE // 4096


def faults():
    """Page faults of a pass that holds SIZE bytes, once others have."""
    for n in range(6):
        if n == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        held = b"x" * SIZE
        del held
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 4


def switch():
    for number, value in ((-1, 1 << 30), (-3, 1 << 30), (-8, 1)):
        assert ctypes.CDLL(None).mallopt(number, value) == 1


@ray.remote
class Actor:
    def __init__(self, switched):
        if switched:
            switch()

    async def passes(self):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(faults).result()


switch()
with ThreadPoolExecutor(1) as pool:
    script = pool.submit(faults).result()
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
environment = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
plain = ray.get(Actor.remote(False).passes.remote())
called = ray.get(Actor.remote(True).passes.remote())
started = ray.get(Actor.options(runtime_env={"env_vars": environment}).remote(False).passes.remote())
ray.shutdown()
print(f"page faults a pass over {SIZE >> 20} MB: actor {plain:.0f}, mallopt {called:.0f}, environment {started:.0f}; a script with mallopt {script:.0f}")
sys.exit(not (script < 0.01 * PAGES and plain > 0.9 * PAGES and called > 0.9 * PAGES and started < 0.01 * PAGES))
PYTHON
