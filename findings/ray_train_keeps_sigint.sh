#!/usr/bin/env bash
# Guess: once a Ray Train trainer's `fit()` has returned, Ctrl-C means to the program what it meant before.
# Seen (ray 2.60.0, Train V2): `fit()` in the main thread puts a handler of its own in place of the program's and never puts the old one
# back. The first Ctrl-C after it says "aborting the training run", though that run is over, and nothing is raised: the program works on.
# The third ends it by sys.exit(0), so a shell or a scheduler takes an interrupted program for a finished one. Called in any other
# thread `fit()` leaves the handlers alone.
# Matters for: whoever evaluates, exports or serves in the same program after training, or has a SIGINT handler of their own.
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'ray[train]==2.60.0'
cd "$folder"
cat > trained.py <<'PYTHON'
import os
import signal
import sys
import tempfile
import time

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


def interrupted():
    """What one Ctrl-C does to a program that is at work."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(3)
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    except SystemExit as error:
        return f"sys.exit({error.code})"
    return "nothing"


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
before = interrupted()
DataParallelTrainer(
    lambda: ray.train.report({"loss": 0.0}),
    scaling_config=ScalingConfig(num_workers=1),
    run_config=RunConfig(storage_path=tempfile.mkdtemp(dir=os.getcwd())),
).fit()
after = [interrupted() for _ in range(3)]
print(f"ray {ray.__version__}: Ctrl-C before fit(): {before}; the first three after it: {', '.join(after)}")
sys.exit(0 if (before, after) == ("KeyboardInterrupt", ["nothing", "nothing", "sys.exit(0)"]) else 1)
PYTHON
RAY_TRAIN_V2_ENABLED=1 timeout 300 "$folder/venv/bin/python" trained.py
