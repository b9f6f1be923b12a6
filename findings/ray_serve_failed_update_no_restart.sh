#!/usr/bin/env bash
# Guess: a rolling update of a Ray Serve deployment that fails (the new version's constructor raises, max_surge_percent=100) leaves the
# old version in charge: it serves on, and Serve replaces its replica when that dies, as it did before the update.
# Seen (ray 2.60.0): the application is DEPLOY_FAILED and the old replica answers, but nobody looks after it. Once its process is gone
# no replica of either version is started, and requests end with DeploymentUnavailableError until somebody deploys again.
# The same replica killed before the update is replaced within seconds.
# Matters for: whoever updates a model under load and counts a failed update as harmless because requests are still answered. Deploy
# the old arguments again as soon as an update has failed.
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'ray[serve]==2.60.0'
cat >"$folder/update.py" <<'PYTHON'
import logging
import os
import signal
import sys
import time

import ray
from ray import serve

PATIENCE_S = 60


@serve.deployment(num_replicas=1, max_surge_percent=100, max_constructor_retry_count=2)
class Model:
    def __init__(self, version):
        if version == "new":
            raise RuntimeError("the new version cannot start")
        self.version = version

    def __call__(self):
        return self.version, os.getpid()


def answered(handle, seconds):
    """What a replica says within that time; the last error's name where none does."""
    end, said = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            return handle.remote().result(timeout_s=5)
        except Exception as error:  # each kind counts as no answer, and the last one is printed
            said = type(error).__name__
        time.sleep(1)
    return said


ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
serve.start(http_options={"location": "NoServer"})
handle = serve.run(Model.bind("old"), name="app", route_prefix=None)
first = answered(handle, PATIENCE_S)
os.kill(first[1], signal.SIGKILL)
second = answered(handle, PATIENCE_S)
print(f"killed before an update: {second[0] if isinstance(second, tuple) else second} again, a new process: {second[1] != first[1]}")
try:
    serve.run(Model.bind("new"), name="app", route_prefix=None)
except RuntimeError:
    pass
status = serve.status().applications["app"]
still = answered(handle, PATIENCE_S)
print(f"after the failed update: {status.status.value}, {still[0]} answers")
os.kill(still[1], signal.SIGKILL)
time.sleep(2)
last = answered(handle, PATIENCE_S)
status = serve.status().applications["app"]
print(f"killed after it, {PATIENCE_S} s: {last}, {status.status.value}, replicas {dict(status.deployments['Model'].replica_states)}")
serve.shutdown()
ray.shutdown()
replaced = isinstance(second, tuple) and second[0] == "old" and second[1] != first[1]
alone = last == "DeploymentUnavailableError" and not status.deployments["Model"].replica_states
sys.exit(0 if replaced and still[0] == "old" and alone else 1)
PYTHON
"$folder/venv/bin/python" "$folder/update.py" 2>/dev/null | grep -v '(raylet)'
