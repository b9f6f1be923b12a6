"""The Slurm script and the SkyPilot task: what their own readers make of them, and what they promise about being
stopped.
"""

from __future__ import annotations

import re
import subprocess
import textwrap
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
SBATCH = CLUSTER / "slurm" / "biomedclip.sbatch"
SKYPILOT = CLUSTER / "skypilot.yaml"


def options() -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SBATCH.read_text(), flags=re.M)
    return dict(found)


def test_bash_reads_both() -> None:
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    for part in ("setup", "run"):
        script = yaml.safe_load(SKYPILOT.read_text())[part]
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_requeued_job_keeps_its_log_and_has_the_machine_for_itself() -> None:
    given = options()
    assert given["open-mode"] == "append"
    assert "requeue" in given
    assert "exclusive" in given  # symmetric-run ends with `ray stop`, which ends every Ray of the user on the machine
    assert given["ntasks-per-node"] == "1"


def test_no_option_comes_after_the_first_command_where_slurm_reads_none() -> None:
    lines = SBATCH.read_text().splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[: last + 1])


@pytest.mark.parametrize("late", [False, True], ids=["the driver runs", "Ray has still to begin"])
def test_the_signal_before_the_limit_reaches_the_driver_which_then_is_queued_again(tmp_path: Path, late: bool) -> None:
    """Real Slurm ended a job as TIMEOUT, not queued again, whose signal came before its driver had begun."""
    """The script itself, with Slurm's commands and Ray's replaced by what they do here: run the command,
    name the node.
    """
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, script in {
        "srun": f'[ "$1" = --overlap ] && {{ shift; echo "$@" >>{tmp_path}/stopped; }}; '
        f'[ "$2" = stop ] || {{ echo >{tmp_path}/step; sleep {2 * late}; }}; exec "$@"',
        "ray": '[ "$1" = stop ] && exit; while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
        "scontrol": f'if [ "$1" = requeue ]; then echo "$2" >{tmp_path}/requeued; else echo localhost; fi',
        "python": f"trap 'echo told >{tmp_path}/told; exit 130' TERM; echo \"$RAY_ADDRESS $@\" >{tmp_path}/began; "
        "while true; do sleep 0.1; done",
    }.items():
        (bin_ / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (bin_ / name).chmod(0o755)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    env = {
        "PATH": f"{bin_}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "1",
    }
    watcher = textwrap.dedent(
        f"""
        bash {SBATCH} CONFIG root=/mnt/x & job=$!
        until [ -s {tmp_path}/{"step" if late else "began"} ]; do sleep 0.1; done
        kill -USR1 $job
        wait $job
        """
    )
    ended = subprocess.run(["bash", "-c", watcher], env=env, timeout=120, check=False)
    assert (tmp_path / "requeued").read_text() == "77\n"
    if late:  # it may be told before it knows what to do then
        assert ended.returncode in (130, 143)
        return
    assert (tmp_path / "began").read_text() == "127.0.0.1:6379 workflows/biomedclip.py CONFIG root=/mnt/x\n"
    assert (tmp_path / "told").exists()
    assert (tmp_path / "stopped").read_text() == "ray stop --force\n"  # on all nodes, once the driver had ended
    assert ended.returncode == 130


def test_skypilots_own_loader_reads_the_task() -> None:
    sky = pytest.importorskip("sky", reason="pip install 'biomedclip-ray[skypilot]', in an environment of its own")
    task = sky.Task.from_yaml(str(SKYPILOT))
    assert (task.name, task.num_nodes) == ("biomedclip", 2)
    assert all(one.use_spot for one in task.resources)


def test_the_workflows_ray_beside_skypilots_takes_other_ports_and_stops_none() -> None:
    run = yaml.safe_load(SKYPILOT.read_text())["run"]
    ports = {int(port) for port in re.findall(r"port[ =](\d+)", run)} | {
        int(port) for port in re.findall(r":(\d{4,5})", run)
    }
    assert ports.isdisjoint({6380, 8266, 6379, 8265})
    assert "ray stop" not in run
