"""One webhook for whoever waits: told when a run has finished, has failed, or waits for nodes. It never fails a run."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from biomedclip_ray.config.operate import Notice

log = logging.getLogger(__name__)

FINISHED, FAILED, WAITING = "finished", "failed", "waiting"
AGAIN_S, PAUSE_S = 3600.0, 1.0

_told: dict[str, float] = {}
_to: list[tuple[Notice, dict[str, Any]]] = []


def address(notice: Notice, **facts: Any) -> None:
    """From now on this process tells this webhook, with these facts in each message."""
    _to[:] = [(notice, facts)]
    _told.clear()


def waits(stage: str, text: str) -> None:
    """A stage waits for nodes: told once an hour, without waiting for the answer."""
    now = time.monotonic()
    if now - _told.get(stage, float("-inf")) >= AGAIN_S:
        _told[stage] = now
        send(WAITING, text, stage=stage)


def send(event: str, text: str, **facts: Any) -> threading.Thread | None:
    """Begin to tell; the thread that does it ends within the deadline, and with the process."""
    if not _to or _to[0][0].webhook is None:
        return None
    notice, known = _to[0]
    message = {"event": event, **known, **facts, "text": text}
    thread = threading.Thread(target=_post, args=(notice, message), name="notice", daemon=True)
    thread.start()
    return thread


def ended(code: int, state: str, said: list[str]) -> None:
    """The run has ended: tell, and wait for the answer until the deadline."""
    text = "; ".join([state, *said])
    thread = send(FINISHED if code == 0 else FAILED, text, state=state, exit_code=code)
    if thread is not None:
        thread.join(_to[0][0].deadline_s)
        if thread.is_alive():
            log.warning("the webhook did not answer within %g s", _to[0][0].deadline_s)


def _post(notice: Notice, message: dict[str, Any]) -> None:
    """Until it is taken, or the deadline has come; a message that is refused is not sent again."""
    import httpx

    assert notice.webhook is not None
    url = notice.webhook.get_secret_value()
    host = urlsplit(url).hostname  # the rest of it is a secret
    deadline = time.monotonic() + notice.deadline_s
    problem = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            answer = httpx.post(url, json=message, timeout=left)
        except httpx.HTTPError as error:
            problem = type(error).__name__
        else:
            if answer.status_code < 300:
                return
            problem = f"HTTP {answer.status_code}"
            if answer.status_code < 500 and answer.status_code != 429:
                break
        time.sleep(min(PAUSE_S, max(0.0, deadline - time.monotonic())))
    log.warning("the webhook at %s was not told of %s: %s", host, message["event"], problem)
