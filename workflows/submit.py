"""Run the workflow on a cluster: send it, follow its log, and end with its own exit code.

    python workflows/submit.py --to http://HEAD:8265 CONFIG [key=value ...] [--until evaluate ...]
    python workflows/submit.py --to kuberay CONFIG root=s3://bucket/run ...
    python workflows/submit.py --to slurm CONFIG root=/mnt/shared/run ...
    python workflows/submit.py --to skypilot --file task.yaml CONFIG root=s3://bucket/run ...
    python workflows/submit.py --to http://HEAD:8265 --follow ID CONFIG root=s3://bucket/run

CONFIG and what follows it are what workflows/biomedclip.py takes. Exit codes are the run's: 0 done; 1 failed; 2
refused, and nothing was started; 3 too much was lost to network or disk, submit it again; 130 interrupted or left
alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from biomedclip_ray.config import ConfigError
from biomedclip_ray.run.manifests import hand_over
from biomedclip_ray.run.submit import WAYS, Submission, SubmitError, check_address, prepare
from biomedclip_ray.store.lease import HeldError

REPO = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="submit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", required=True, metavar="WHERE", help=f"http://HEAD:8265, or {', '.join(WAYS)}")
    parser.add_argument("--file", type=Path, help="write what would be submitted there, and submit nothing")
    parser.add_argument("--follow", metavar="ID", help="send nothing; follow a run that was submitted before")
    options, workflow = parser.parse_known_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        check_address(options.to)
        submission = prepare(workflow, REPO, look=options.follow is None)
        if options.follow:
            submission = dataclasses.replace(submission, id=options.follow)
        if options.to in WAYS:
            code, said = hand_over(submission, options.to, options.file, options.follow is not None)
        else:
            code, said = _to_ray(submission, options.to, options.follow is not None)
    except (ConfigError, HeldError, SubmitError) as error:
        code, said = 2, [f"error: {line}" for line in str(error).splitlines()]
    for line in said:
        print(line, file=sys.stderr)
    return code


def _to_ray(submission: Submission, address: str, sent: bool) -> tuple[int, list[str]]:
    if os.environ.get("RAY_AUTH_TOKEN") or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read by Ray when it is imported, which is below
    for name in ("no_proxy", "NO_PROXY"):  # a tunnel's end on this machine is not behind the proxy of http_proxy
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost,127.0.0.1,::1")))
    from biomedclip_ray.run.jobs import connect, follow, send, stop

    client = connect(address)
    if not sent:
        send(client, submission)
        print(f"submitted {submission.id} to {address}", file=sys.stderr)
    while True:
        try:
            return follow(client, submission)
        except KeyboardInterrupt:
            if not _asked_to_stop():
                again = f"python workflows/submit.py --to {address} --follow {submission.id} " + " ".join(
                    submission.arguments
                )
                return 130, [f"{submission.id} goes on; to follow it again: {again}"]
            stop(client, submission)
            print("stopping: it saves what it has", file=sys.stderr)


def _asked_to_stop() -> bool:
    """Of the person at the terminal; where there is none, the job is left alone."""
    if not sys.stdin.isatty():
        return False
    try:
        return input("\nStop the job, or leave it running? [stop/LEAVE] ").strip().lower().startswith("s")
    except (EOFError, KeyboardInterrupt):
        return False


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
