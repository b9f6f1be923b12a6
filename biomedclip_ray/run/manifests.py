"""The ways to submit that are files: a KubeRay RayJob, a Slurm script, a SkyPilot task. Sent where its tool is here,
else written.

The files of cluster/ are the templates, filled in with the run's command and id; so what is tested there is what is
sent. How the run ended is asked of its record in the root; the tool is only asked whether it is still at it.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from biomedclip_ray.run.runs import RUN_ID, find
from biomedclip_ray.run.submit import Submission, SubmitError, verdict

log = logging.getLogger(__name__)

ASK_S = 5.0
_GRACE = 3


def hand_over(submission: Submission, way: str, file: Path | None, sent: bool) -> tuple[int, list[str]]:
    """Submit by `way` and follow it to its end, or write the file; exit code and what to say.

    Args:
        file: write there and submit nothing.
        sent: it was submitted before and is only followed.

    Raises:
        SubmitError: the tool is here and refuses it, or the file cannot be written.
    """
    text, tool, ending = _MADE[way](submission)
    if file is not None or (tool is None or shutil.which(tool) is None):
        target = file or Path(f"biomedclip-{submission.id}{ending}")
        try:
            target.write_text(text)
        except OSError as error:
            raise SubmitError(f"--file {target} cannot be written ({error.strerror}); name another") from error
        return 0, [f"written to {target}; submit it with: {COMMANDS[way].format(file=target)}"]
    if way == "kuberay":
        return _kuberay(submission, text, sent)
    return _slurm(submission, text, sent)


def rayjob(submission: Submission) -> tuple[str, str | None, str]:
    """cluster/kuberay/rayjob.yaml with this run's name, command and id; the code is the image's."""
    job = yaml.safe_load((submission.folder / "cluster/kuberay/rayjob.yaml").read_text())
    job["metadata"]["name"] = _name(submission)
    job["spec"]["entrypoint"] = f"{submission.entrypoint} --refusal-is-final"
    job["spec"]["runtimeEnvYAML"] = yaml.safe_dump({"env_vars": submission.env})
    return yaml.safe_dump(job, sort_keys=False, width=1000), "kubectl", ".yaml"


def sbatch(submission: Submission) -> tuple[str, str | None, str]:
    """cluster/slurm/biomedclip.sbatch with this run's arguments and id in it."""
    script = (submission.folder / "cluster/slurm/biomedclip.sbatch").read_text()
    first, _, rest = script.partition("set -uo pipefail\n")
    arguments = shlex.join(submission.arguments)
    return f"{first}set -uo pipefail\nexport {RUN_ID}={submission.id}\nset -- {arguments}\n{rest}", "sbatch", ".sbatch"


def skypilot(submission: Submission) -> tuple[str, str | None, str]:
    """cluster/skypilot.yaml with this run's configuration, root, options and id. Written only: launching it is a
    question of money.
    """
    task = yaml.safe_load((submission.folder / "cluster/skypilot.yaml").read_text())
    rest = [one for one in submission.arguments[1:] if not one.startswith("root=")]
    if any(shlex.quote(one) != one for one in rest):
        raise SubmitError(
            "a task of SkyPilot takes its options as one line: leave out blanks and quotes, or put them into CONFIG"
        )
    task["name"] = _name(submission)
    task["envs"] = {
        "CONFIG": submission.arguments[0],
        "ROOT": submission.root,
        "OPTIONS": " ".join(rest),
        RUN_ID: submission.id,
    }
    return yaml.safe_dump(task, sort_keys=False, width=1000), None, ".yaml"


_MADE: dict[str, Callable[[Submission], tuple[str, str | None, str]]] = {
    "kuberay": rayjob,
    "slurm": sbatch,
    "skypilot": skypilot,
}
COMMANDS = {
    "kuberay": "kubectl apply -f {file}",
    "slurm": "sbatch {file}",
    "skypilot": "sky jobs launch {file} --secret RAY_AUTH_TOKEN=$(openssl rand -hex 32)",
}


def _name(submission: Submission) -> str:
    return f"biomedclip-{submission.id}"


def _kuberay(submission: Submission, text: str, sent: bool) -> tuple[int, list[str]]:
    if not sent:
        _told(["kubectl", "apply", "-f", "-"], text)
    name = _name(submission)
    print(f"RayJob {name}; its log: kubectl logs -f job/{name}", file=sys.stderr)
    logs = ["kubectl", "logs", "--follow", "--pod-running-timeout=10m", f"job/{name}"]
    ask = ["kubectl", "get", "rayjob", name, "--output=jsonpath={.status.jobDeploymentStatus} {.status.jobStatus}"]

    def state() -> int | None:
        """What it ended with; None: it goes on, or nobody answers."""
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
        if answer.returncode:
            if "NotFound" in answer.stderr:
                return 1
            log.warning("kubectl: %s; asking on", answer.stderr.strip().splitlines()[-1:])
            return None
        deployment, _, job = answer.stdout.partition(" ")
        return None if deployment not in ("Complete", "Failed") else 0 if job == "SUCCEEDED" else 1

    return _until_over(submission, state, logs, "KubeRay")


def _slurm(submission: Submission, text: str, sent: bool) -> tuple[int, list[str]]:
    note = submission.folder / f"biomedclip-{submission.id}.job"
    if not sent:
        note.write_text(_told(["sbatch", "--parsable"], text).partition(";")[0].strip())
    elif not note.exists():
        raise SubmitError(f"{note} is not there: it was submitted from another folder")
    job = note.read_text()
    output = submission.folder / f"biomedclip-{job}.log"
    print(f"Slurm job {job}; its log: {output}", file=sys.stderr)

    def state() -> int | None:
        answer = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, check=False)
        if answer.returncode and "Invalid job id" not in answer.stderr:
            log.warning("squeue: %s; asking on", answer.stderr.strip())
            return None
        return None if answer.stdout.strip() else 1  # ended: its state and code say nothing reliable

    return _until_over(submission, state, ["tail", "-n", "+1", "-F", str(output)], "Slurm")


def _until_over(
    submission: Submission, state: Callable[[], int | None], logs: list[str], who: str
) -> tuple[int, list[str]]:
    """Print the log until the tool says that it is over, and then ask the record. A log that broke off is taken up
    again.
    """
    stop = threading.Event()
    printer = threading.Thread(target=_print, args=(logs, stop), daemon=True)
    printer.start()
    try:
        while (code := state()) is None:
            record = _record(submission)
            if record is not None and record["exit_code"] is not None and who == "KubeRay":
                break  # the pods linger for minutes
            time.sleep(ASK_S)
    except KeyboardInterrupt:
        return 130, [f"{submission.id} goes on; to follow it again: the same command with --follow {submission.id}"]
    finally:
        stop.set()
        printer.join(ASK_S)
    return verdict(submission, 1 if code is None else code, who)


def _print(command: list[str], stop: threading.Event) -> None:
    printed = 0
    while not stop.is_set():
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
        )
        ended = threading.Thread(target=_end_with, args=(process, stop), daemon=True)
        ended.start()
        assert process.stdout is not None
        for number, line in enumerate(process.stdout):
            if number >= printed:
                printed = number + 1
                sys.stdout.write(line)
                sys.stdout.flush()
        process.wait()
        stop.wait(ASK_S)


def _end_with(process: subprocess.Popen[str], stop: threading.Event) -> None:
    while process.poll() is None:
        if stop.wait(0.2):
            time.sleep(_GRACE)  # its last lines
            process.terminate()


def _record(submission: Submission) -> dict[str, Any] | None:
    try:
        return find(submission.root, submission.id)
    except OSError:
        return None


def _told(command: list[str], text: str) -> str:
    answer = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if answer.returncode:
        said = answer.stderr.strip() or answer.stdout.strip()
        raise SubmitError(f"{command[0]} refuses it: {said}; --file FILE writes what it was given, to be looked at")
    return answer.stdout
