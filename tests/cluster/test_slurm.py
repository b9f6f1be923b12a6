"""cluster/slurm/biomedclip.sbatch on a real Slurm of two nodes: queued again, preempted and told of its time limit, a
job ends with the weights of a run that nobody disturbed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from biomedclip_ray.run.runs import find
from biomedclip_ray.sample import make_bucket
from biomedclip_ray.store.place import Place
from biomedclip_ray.train.journal import attempts
from biomedclip_ray.train.metrics import read
from tests.cluster.conftest import REPO
from tests.cluster.slurm import Slurm, missing

ENOUGH_S = 900
CONFIG = "workflows/configs/sample.yaml"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    if why := missing():
        pytest.skip(why)
    slurm = Slurm()
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.close()


def told(folder: Path) -> list[str]:
    """What the workflow is told, beside its configuration: two workers, one a node."""
    resources = "{workers: 2, cpus_per_worker: 1.5, feed_cpus: 0.4, feed_concurrency: 1}"
    return [
        f"root={folder / 'root'}",
        f"source.uri={folder.parent / 'bucket'}",
        "train.epochs=120",
        "train.batch=32",
        "train.checkpoint_steps=10",
        "train.log_steps=1",
        f"train.resources={resources}",
    ]


def workflow(folder: Path, *options: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "workflows/biomedclip.py", CONFIG, *told(folder), *options]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=ENOUGH_S)
    assert done.returncode == 0, done.stdout + done.stderr


def product(folder: Path) -> Path:
    [found] = (folder / "root" / "train").iterdir()
    return found


def steps(folder: Path) -> int:
    """The newest step that a run below the folder has told of."""
    if not (folder / "root" / "train").is_dir():
        return 0
    return max((line["step"] for line in read(Place(str(product(folder))))), default=0)


def weights(folder: Path) -> str:
    return hashlib.sha256((product(folder) / "bundle" / "open_clip_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_queued_again_preempted_and_at_its_limit_a_job_ends_in_the_same_bytes(slurm: Slurm) -> None:
    make_bucket(slurm.home / "bucket", 60)
    calm, disturbed = slurm.home / "calm", slurm.home / "disturbed"
    workflow(calm, "--until", "curate")
    shutil.copytree(calm, disturbed)
    workflow(calm, "--only", "train", "train.resources.cpus_per_worker=0.5")

    log = slurm.home / "job.log"
    job = slurm.submit(
        *("--nodes=2", "--cpus-per-task=2", "--gpus-per-node=0", "--time=60", f"--output={log}"),
        *("cluster/slurm/biomedclip.sbatch", CONFIG, *told(disturbed), "--only", "train"),
    )
    slurm.until(lambda: steps(disturbed) > 15, "training", ENOUGH_S)
    slurm.run("scontrol", "requeue", job, check=True)
    slurm.again(job)
    before = steps(disturbed)
    slurm.until(lambda: steps(disturbed) > before, "training after a requeue", ENOUGH_S)
    urgent = slurm.submit("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    slurm.until(lambda: slurm.state(urgent) == "COMPLETED", "the job that preempts", 180)
    slurm.again(job)
    before = steps(disturbed)
    slurm.until(lambda: steps(disturbed) > before, "training after a preemption", ENOUGH_S)
    slurm.limit(job, slurm.minutes(job) + 6)  # it is told five minutes before
    slurm.until(lambda: slurm.state(job) == "PENDING", "queued again before its limit", 300)
    assert steps(disturbed) < steps(calm)
    slurm.limit(job, 60)
    slurm.again(job)
    slurm.until(lambda: slurm.state(job) not in ("RUNNING", "COMPLETING"), "its end", ENOUGH_S)
    assert slurm.state(job) == "COMPLETED", log.read_text()
    run = find(str(disturbed / "root"), f"slurm-{job}")
    assert run is not None and run["state"] == "done", log.read_text()
    began = [each["first_step"] for each in attempts(Place(str(product(disturbed))))]
    # a try that is killed begins where the last checkpoint was, maybe twice at the same; one that is told saves its own
    assert len(began) == 4 and began == sorted(began)
    assert began[0] == 1 < began[1] and began[2] < began[3]
    hosts = {worker["host"] for worker in attempts(Place(str(product(disturbed))))[-1]["workers"]}
    assert len(hosts) == 2
    assert weights(disturbed) == weights(calm)
