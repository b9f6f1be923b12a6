"""What is checked before anything is sent, what each way would send, and what a run is said to have ended with."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from biomedclip_ray.config import ConfigError
from biomedclip_ray.run.jobs import weigh
from biomedclip_ray.run.manifests import hand_over
from biomedclip_ray.run.runs import RUN_ID
from biomedclip_ray.run.submit import WAYS, Submission, SubmitError, check_address, prepare, verdict
from biomedclip_ray.store.lease import HeldError, Lease
from biomedclip_ray.store.place import Place

REPO = Path(__file__).resolve().parents[2]
SAMPLE = "workflows/configs/sample.yaml"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)


def submission(root: Path | str, *more: str) -> Submission:
    return Submission((SAMPLE, f"root={root}", *more), str(root), REPO, "20261129-120000-abcd")


def record(root: Path, code: int | None, state: str) -> None:
    (root / "runs").mkdir(parents=True, exist_ok=True)
    (root / "runs" / "20261129-120000-abcd.json").write_text(json.dumps({"exit_code": code, "state": state}))


def test_a_wrong_key_is_found_before_anything_is_sent() -> None:
    with pytest.raises(ConfigError, match=r"did you mean train\.epochs"):
        prepare([SAMPLE, "train.epoch=3", "root=/mnt/x"], REPO)


@pytest.mark.parametrize("to", ["", "kubray", "HEAD:8265", "ray://HEAD:10001", "ftp://HEAD", "http://"])
def test_what_is_no_dashboards_address_is_refused_at_once(to: str) -> None:
    with pytest.raises(ConfigError, match=f"--to {to}: give the dashboard's address, http://HEAD:8265, or"):
        check_address(to)


def test_a_way_is_known_and_one_that_is_nearly_one_is_guessed() -> None:
    for to in (*WAYS, "http://HEAD:8265", "https://HEAD"):
        check_address(to)
    with pytest.raises(ConfigError, match="did you mean kuberay"):
        check_address("kubray")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SubmitError, match=r"--file .*/none/job\.yaml cannot be written \(No such file or directory\)"):
        hand_over(submission("s3://b/r"), "kuberay", tmp_path / "none" / "job.yaml", False)


def test_a_relative_root_is_refused_with_the_fix() -> None:
    with pytest.raises(ConfigError, match=r"root=\.demo/root is relative.*root=s3://bucket/run"):
        prepare([SAMPLE], REPO)


def test_a_configuration_that_would_not_be_sent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("root: /mnt/x\n")
    with pytest.raises(ConfigError, match="lies outside of"):
        prepare([str(tmp_path / "mine.yaml")], REPO)


def test_a_root_that_somebody_works_on_is_refused_naming_the_holder(tmp_path: Path) -> None:
    place = Place(str(tmp_path)).at("ingest/0123")
    with (
        Lease(place, "ingest", heartbeat_s=0.2),
        pytest.raises(HeldError, match=rf"process {os.getpid()} on .*ingest/0123"),
    ):
        prepare([SAMPLE, f"root={tmp_path}"], REPO)


def test_the_lease_of_a_driver_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    place = Place(str(tmp_path)).at("ingest/0123")
    code = (
        "from biomedclip_ray.store.lease import Lease; from biomedclip_ray.store.place import Place; import os; "
        f"Lease(Place({place.uri!r}), 'x').__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert place.exists("_LEASE.json")
    assert prepare([SAMPLE, f"root={tmp_path}"], REPO).root == str(tmp_path)


@pytest.mark.parametrize(
    ("code", "state", "rays", "wanted"),
    [
        (0, "done", 0, 0),
        (2, "refused", 0, 2),  # where --refusal-is-final made it 0 for KubeRay
        (3, "unfinished", 1, 3),
        (1, "failed", 0, 1),
        (None, "running", 137, 137),
        (None, "running", 0, 1),
    ],
)
def test_what_the_record_says_counts_and_not_the_exit_code(
    tmp_path: Path, code: int | None, state: str, rays: int, wanted: int
) -> None:
    record(tmp_path, code, state)
    assert verdict(submission(tmp_path), rays, "Ray")[0] == wanted


def test_a_run_that_never_began_is_no_success_whatever_its_tool_says(tmp_path: Path) -> None:
    code, [said] = verdict(submission(tmp_path), 0, "Slurm")
    assert code == 1
    assert "never began" in said


def test_a_root_that_cannot_be_read_leaves_the_tool_to_be_asked() -> None:
    code, [said] = verdict(submission("/proc/self/mem"), 3, "Ray")
    assert code == 3
    assert "cannot be read from here" in said


def test_a_folder_that_is_too_large_is_refused_naming_what_is_large(
    tmp_path: Path,
) -> None:
    for name, megabytes in (("scans", 900), ("biomedclip_ray", 1), ("notes/old", 300), ("left_out", 500)):
        (tmp_path / name).mkdir(parents=True)
        with (tmp_path / name / "content.bin").open("wb") as file:
            file.truncate(megabytes << 20)  # holes: it takes no room
    (tmp_path / ".rayignore").write_text("left_out/\n")
    with pytest.raises(
        SubmitError, match=r"1,201 MiB, and Ray takes 100; largest: scans 900 MiB, notes/old 300 MiB.*\.rayignore"
    ) as error:
        weigh(tmp_path)
    assert "left_out" not in str(error.value)


def test_a_rayjob_is_the_clusters_file_with_this_run_in_it(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    one = submission("s3://bucket/run", "--until", "evaluate")
    code, [said] = hand_over(one, "kuberay", file, sent=False)
    assert (code, said) == (0, f"written to {file}; submit it with: kubectl apply -f {file}")
    job, shipped = yaml.safe_load(file.read_text()), yaml.safe_load((REPO / "cluster/kuberay/rayjob.yaml").read_text())
    assert job["metadata"]["name"] == "biomedclip-20261129-120000-abcd"
    spec = job["spec"]
    assert spec.pop("entrypoint") == (
        f"python workflows/biomedclip.py {SAMPLE} root=s3://bucket/run --until evaluate --refusal-is-final"
    )
    env = yaml.safe_load(spec.pop("runtimeEnvYAML"))["env_vars"]
    assert env == {RUN_ID: "20261129-120000-abcd", "RAY_JOB_STOP_WAIT_TIME_S": "120"}
    assert spec == {key: value for key, value in shipped["spec"].items() if key in spec}


def test_a_slurm_script_is_the_clusters_file_with_this_run_in_it(tmp_path: Path) -> None:
    file = tmp_path / "job.sbatch"
    hand_over(submission("/mnt/shared/my run"), "slurm", file, sent=False)
    text = file.read_text()
    assert f"export {RUN_ID}=20261129-120000-abcd\nset -- {SAMPLE} 'root=/mnt/shared/my run'\n" in text
    assert text.index("#SBATCH --requeue") < text.index("set -- ")
    subprocess.run(["bash", "-n", str(file)], check=True)


def test_a_skypilot_task_has_the_run_in_its_environment(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    hand_over(submission("s3://bucket/run", "train.lr=3e-4", "--until", "train"), "skypilot", file, sent=False)
    task = yaml.safe_load(file.read_text())
    assert task["envs"] == {
        "CONFIG": SAMPLE,
        "ROOT": "s3://bucket/run",
        "OPTIONS": "train.lr=3e-4 --until train",
        RUN_ID: "20261129-120000-abcd",
    }


def tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{script}")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_kubernetes_is_followed_through_answers_that_fail_and_the_record_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kubectl of our own: takes the job, fails once as with a cut connection, then calls the job done."""
    tool(
        tmp_path,
        "kubectl",
        f"""case $1 in
apply) cat >{tmp_path}/applied.yaml ;;
logs) echo first; echo second; sleep 0.3 ;;
get) if [ ! -e {tmp_path}/asked ]; then touch {tmp_path}/asked; echo 'connection refused' >&2; exit 1; fi
     echo -n 'Complete SUCCEEDED' ;;
esac
""",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("biomedclip_ray.run.manifests.ASK_S", 0.2)
    record(tmp_path, None, "running")
    one = submission(tmp_path)
    assert hand_over(one, "kuberay", None, sent=False)[0] == 1  # it says SUCCEEDED of a run that never ended
    assert yaml.safe_load((tmp_path / "applied.yaml").read_text())["kind"] == "RayJob"
    out = capsys.readouterr().out
    assert out.startswith("first\nsecond\n")
    assert out.count("first") == 1
    record(tmp_path, 2, "refused")
    assert hand_over(one, "kuberay", None, sent=True)[0] == 2


def test_slurm_is_followed_until_it_forgets_the_job_and_the_record_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "repo"
    (folder / "cluster/slurm").mkdir(parents=True)
    (folder / "cluster/slurm/biomedclip.sbatch").write_text((REPO / "cluster/slurm/biomedclip.sbatch").read_text())
    tool(
        tmp_path,
        "sbatch",
        f"cat >{tmp_path}/script; echo 'from the job' >{folder}/biomedclip-77.log; echo '77;cluster'\n",
    )
    tool(tmp_path, "squeue", f"[ -e {tmp_path}/asked ] || echo RUNNING; touch {tmp_path}/asked\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("biomedclip_ray.run.manifests.ASK_S", 0.5)
    one = Submission((SAMPLE, f"root={tmp_path}"), str(tmp_path), folder, "20261129-120000-abcd")
    record(tmp_path, 3, "unfinished")
    started = time.monotonic()
    assert hand_over(one, "slurm", None, sent=False)[0] == 3
    assert time.monotonic() - started < 60
    assert "from the job" in capsys.readouterr().out
    assert "set -- " in (tmp_path / "script").read_text()
