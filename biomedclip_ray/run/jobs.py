"""Ray Jobs: send the working directory and the command, follow the log, and end as the job ended.

`ray job submit` does the same with less: it ends two seconds after its connection is cut, though the job goes on; it
knows 0 and 1; and it says 0 for a job that somebody stopped. Here the log is taken up again where it broke off, for as
long as the job lives.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import Counter
from concurrent.futures import TimeoutError as NotInTime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from biomedclip_ray.run.interrupt import in_thread
from biomedclip_ray.run.private import weigh_folder
from biomedclip_ray.run.submit import Submission, SubmitError, verdict
from biomedclip_ray.store.lease import HeldError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

log = logging.getLogger(__name__)

ROOT, OVER = "biomedclip_root", ("SUCCEEDED", "FAILED", "STOPPED")
ASK_S, ANSWER_S, QUIET_S = 2.0, 20.0, 60.0
_LAST_LINES_S = 5.0


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster whose dashboard answers there. Raises SubmitError with the fix, a token's among them."""
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return in_thread(lambda: JobSubmissionClient(address), ANSWER_S)
    except AuthenticationError as error:
        raise SubmitError(f"{address}: {_token_fix(str(error))}") from None
    except (ConnectionError, NotInTime, requests.RequestException) as error:
        raise SubmitError(
            f"{address}: no Ray dashboard answers there ({type(error).__name__}); a head's dashboard "
            "answers on the head itself unless --dashboard-host says otherwise: open a tunnel first (ray dashboard "
            "CLUSTER.yaml, kubectl port-forward service/NAME-head-svc 8265, ssh -L 8265:localhost:8265 HEAD), then "
            "give http://localhost:8265"
        ) from None
    except (RuntimeError, ValueError) as error:
        raise SubmitError(f"{address}: {str(error).splitlines()[0]}") from None


def _token_fix(said: str) -> str:
    if "401" in said or "Missing" in said or "required" in said:
        return (
            "the cluster asks for a token and none was sent; put the head's ~/.ray/auth_token into the same place "
            "here, or "
            "set RAY_AUTH_TOKEN"
        )
    return (
        "the token that was sent is not the cluster's; take the head's ~/.ray/auth_token, or on Kubernetes the "
        "secret's: "
        "export RAY_AUTH_TOKEN=$(kubectl get secret NAME -o jsonpath='{.data.auth_token}' | base64 -d)"
    )


def send(client: JobSubmissionClient, submission: Submission) -> None:
    """Submit; the job is then the cluster's, whatever becomes of this process.

    Raises:
        HeldError: a job on this cluster works on the root.
        SubmitError: the working directory is too large, or the cluster does not take the job.
    """
    for job in client.list_jobs():
        if (job.metadata or {}).get(ROOT) == submission.root and job.status not in OVER:
            raise HeldError(
                f"job {job.submission_id} on this cluster works on {submission.root}; wait for it, or stop it"
            )
    weigh(submission.folder)
    try:
        client.submit_job(
            entrypoint=submission.entrypoint,
            submission_id=submission.id,
            runtime_env={"working_dir": str(submission.folder), "env_vars": submission.env},
            metadata={ROOT: submission.root},
        )
    except (RuntimeError, ValueError) as error:
        raise SubmitError(f"the cluster does not take the job: {str(error).splitlines()[0]}") from error


def weigh(folder: Path) -> None:
    """Raises SubmitError where the working directory, less what .gitignore and .rayignore name, is more
    than Ray takes.
    """
    sizes, most = weigh_folder(folder)
    total = sum(sizes.values())
    if total <= most:
        return
    folders: Counter[str] = Counter()
    for name, taken in sizes.items():
        folders["/".join(Path(name).parts[:-1][:2]) or name] += taken
    largest = ", ".join(f"{name} {taken / 2**20:,.0f} MiB" for name, taken in folders.most_common(5))
    raise SubmitError(
        f"{folder} is {total / 2**20:,.0f} MiB, and Ray takes {most / 2**20:,.0f}; largest: {largest}; name what the "
        "job does not "
        "need in .rayignore"
    )


def follow(client: JobSubmissionClient, submission: Submission, out: TextIO = sys.stdout) -> tuple[int, list[str]]:
    """Print the job's log until the job has ended; exit code and what to say. A cut connection is waited out."""
    tail = _Tail(client, submission.id, out)
    silent_since: float | None = None
    told = 0.0
    while True:
        try:
            info = in_thread(lambda: client.get_job_info(submission.id), ANSWER_S)
        except Exception as error:  # requests, aiohttp and Ray each have their own for a cluster that does not answer
            if "status code 404" in str(error):  # it answers, and knows no such job: another cluster, or a new head
                return verdict(submission, 1, f"the cluster, which knows no job {submission.id},")
            silent_since = silent_since or time.monotonic()
            if _has_ended(submission):
                return verdict(submission, 1, "Ray")
            if time.monotonic() - told > QUIET_S:
                told = time.monotonic()
                log.warning(
                    "no answer for %.0f s (%s); the job goes on without us, and this goes on asking",
                    *(told - silent_since, type(error).__name__),
                )
        else:
            if silent_since is not None:
                log.warning("the cluster answers again after %.0f s", time.monotonic() - silent_since)
                silent_since, told = None, 0.0
                tail.begin_again()
            if info.status in OVER:
                tail.finish()
                code = info.driver_exit_code
                failed = 1 if code is None else code
                return verdict(submission, 0 if info.status == "SUCCEEDED" else failed or 1, "Ray")
            tail.keep_up()
        time.sleep(ASK_S)


def stop(client: JobSubmissionClient, submission: Submission) -> None:
    """Ask the job to stop; it saves what it has."""
    client.stop_job(submission.id)


def _has_ended(submission: Submission) -> bool:
    """By the record alone, where the cluster does not answer."""
    from biomedclip_ray.run.runs import find

    try:
        record = find(submission.root, submission.id)
    except OSError:
        return False
    return record is not None and record["exit_code"] is not None


class _Tail:
    """The job's log from a thread. A connection that broke is opened again, and what was printed is not printed twice.

    A cut line says nothing to who listens on it, so a thread that stands still is left behind, and its number is no
    longer the newest.
    """

    def __init__(self, client: JobSubmissionClient, job: str, out: TextIO) -> None:
        self.client, self.job, self.out = client, job, out
        self.printed = 0
        self._newest = 0
        self._thread: threading.Thread | None = None

    def keep_up(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._newest += 1
            self._thread = threading.Thread(target=self._run, args=(self._newest,), name="job log", daemon=True)
            self._thread.start()

    def begin_again(self) -> None:
        """On a new connection, whatever the old one does."""
        self._newest += 1
        self._thread = None
        self.keep_up()

    def finish(self) -> None:
        """The rest, once the job has ended."""
        if self._thread is not None:
            self._thread.join(_LAST_LINES_S)
        self._newest += 1
        try:
            whole = in_thread(lambda: self.client.get_job_logs(self.job), ANSWER_S)
        except Exception as error:  # as above: what the record says is told all the same
            log.warning("the end of the log is missing: %r", error)
            return
        self._show(whole[self.printed :], len(whole))

    def _show(self, fresh: str, printed: int) -> None:
        if fresh:
            self.out.write(fresh)
            self.out.flush()
            self.printed = printed

    def _run(self, number: int) -> None:
        try:
            asyncio.run(self._print(number))
        except Exception as error:  # as above: the next look at the job takes it up again
            log.debug("log of %s: %r", self.job, error)

    async def _print(self, number: int) -> None:
        seen = 0
        async for text in self.client.tail_job_logs(self.job):
            if number != self._newest:
                return
            fresh = text[max(0, self.printed - seen) :]
            seen += len(text)
            self._show(fresh, seen)
