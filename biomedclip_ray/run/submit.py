"""What every way to submit a run shares: the checks before anything is sent, its id, and how it ended.

A run has ended well when root/runs/ID.json of this very submission says so. What Ray, Kubernetes or Slurm say is asked
only where the root cannot be read from here: each of them calls runs done that failed or never began.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from biomedclip_ray.config import STAGES, Config, ConfigError, load
from biomedclip_ray.run.interrupt import in_thread
from biomedclip_ray.run.options import parse
from biomedclip_ray.run.runs import RUN_ID, find, new_id
from biomedclip_ray.store.lease import HeldError, alive, leases
from biomedclip_ray.store.place import Place, StorageError

STOP_WAIT_S = 120
"""Seconds that a stopped job has to save its checkpoint; Ray kills after 3 unless it is told otherwise."""

WAYS = ("kuberay", "slurm", "skypilot")
"""The ways to submit that are files; any other is the address of a dashboard."""

LOOK_S = 6.0
"""A store that cannot be reached from here is tried for longer than anybody waits."""


class SubmitError(RuntimeError):
    """A submission that could not be sent or followed; the message names the fix (exit code 2)."""


@dataclass(frozen=True)
class Submission:
    """One run of the workflow, somewhere else.

    Attributes:
        arguments: of workflows/biomedclip.py, as given.
        root: where it all lies.
        folder: the working directory that is sent.
    """

    arguments: tuple[str, ...]
    root: str
    folder: Path
    id: str = field(default_factory=new_id)

    @property
    def entrypoint(self) -> str:
        return shlex.join(["python", "workflows/biomedclip.py", *self.arguments])

    @property
    def env(self) -> dict[str, str]:
        """What the job must have in its environment."""
        return {RUN_ID: self.id, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}


def check_address(to: str) -> None:
    """Raises ConfigError where a run cannot be submitted there: Ray would take the port for another of its own, and ask
    it for half a minute.
    """
    where = urlsplit(to)
    if to not in WAYS and not (where.scheme in ("http", "https") and where.hostname):
        near = difflib.get_close_matches(to, WAYS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"--to {to}: give the dashboard's address, http://HEAD:8265, or {', '.join(WAYS)}{meant}")


def prepare(arguments: Sequence[str], folder: Path, look: bool = True) -> Submission:
    """Check a command line of the workflow as the job will, so that what is wrong costs a second and no cluster.

    Args:
        look: whether somebody works on the root.

    Raises:
        ConfigError: the configuration is wrong, its file lies outside of what is sent, or the root is relative.
        HeldError: somebody works on the root.
    """
    options = parse(list(arguments), None)
    config = load(options.config, options.overrides)
    path = Path(options.config).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ConfigError(
            f"{path} lies outside of {folder.resolve()}, which is what is sent; copy it into workflows/configs/"
        )
    if "://" not in config.root and not Path(config.root).expanduser().is_absolute():
        raise ConfigError(
            f"root={config.root} is relative; a job needs a place that all nodes share: root=/mnt/shared/run or "
            "root=s3://bucket/run"
        )
    if look:
        check_free(config)
    local = path.relative_to(folder.resolve()).as_posix()
    return Submission(tuple(local if one == options.config else one for one in arguments), config.root, folder)


def check_free(config: Config) -> None:
    """Raises HeldError where a driver works on the root, naming it; nothing is known of a root that cannot be read from
    here.

    It takes a heartbeat or two, about four seconds, and only where there is a lease at all.
    """
    try:
        held = in_thread(lambda: alive(leases(Place(config.root), STAGES)), LOOK_S)
    except (OSError, TimeoutError):  # a store that is not reached from here: the job itself will look again
        return
    if held:
        raise HeldError(f"{held[0]}; wait for it, or stop it and submit again")


def verdict(submission: Submission, otherwise: int, who: str) -> tuple[int, list[str]]:
    """Exit code of a run that is over, and what to say about it.

    Args:
        otherwise: what `who` made of it, taken where the root cannot be read.
    """
    try:
        record = find(submission.root, submission.id)
    except StorageError as error:
        return otherwise, [f"{error}; so this is what {who} says"]
    where = f"{submission.root}/runs/{submission.id}.json"
    if record is None:
        return otherwise or 1, [f"the run never began: there is no {where}; {who} ended with {otherwise}"]
    if record["exit_code"] is None:
        return otherwise or 1, [
            f"{where} says that the run goes on, but {who} says that it has ended: it was killed; submit it again"
        ]
    return int(record["exit_code"]), [f"{record['state']}: {where}"]
