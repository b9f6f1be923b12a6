"""The webhook, asked of a real HTTP server: what it is told, and that nothing it does ends a run or holds it up."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from biomedclip_ray.config import Budget, Config, ConfigError, Notice, parse
from biomedclip_ray.run import notice


class Hook:
    """A server on loopback: keeps what is posted, answers with `status`, after `delay_s`."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.answers: list[int] = []
        self.delay_s = 0.0
        hook = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                hook.posts.append(json.loads(body))
                time.sleep(hook.delay_s)
                self.send_response(hook.answers.pop(0) if hook.answers else 204)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook/secret-part"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    monkeypatch.setattr(notice, "_to", [])
    monkeypatch.setattr(notice, "_told", {})
    hook = Hook()
    yield hook
    hook.server.shutdown()
    hook.server.server_close()


def section(hook: Hook, deadline_s: float = 20) -> Notice:
    return Notice.model_validate({"webhook": hook.url, "deadline_s": deadline_s})


def test_the_end_of_a_run_is_told_with_what_was_said(hook: Hook) -> None:
    notice.address(section(hook), run="one", root="s3://bucket/run")
    notice.ended(0, "done", [])
    notice.ended(3, "unfinished", ["unfinished: budget.hours=8 is spent"])
    known = {"run": "one", "root": "s3://bucket/run"}
    assert hook.posts == [
        {"event": "finished", **known, "state": "done", "exit_code": 0, "text": "done"},
        {
            "event": "failed",
            **known,
            "state": "unfinished",
            "exit_code": 3,
            "text": "unfinished; unfinished: budget.hours=8 is spent",
        },
    ]


def test_a_wait_for_nodes_is_told_once_for_each_stage_and_holds_nothing_up(hook: Hook) -> None:
    hook.delay_s = 1.0
    notice.address(section(hook), run="one")
    begun = time.monotonic()
    for _ in range(3):
        notice.waits("train", "train waits for a node with 16 CPU and 1 GPU: gpu (0 of 8 up)")
    notice.waits("embed", "embed waits")
    assert time.monotonic() - begun < 0.9
    deadline = time.monotonic() + 20
    while len(hook.posts) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted((post["event"], post["stage"]) for post in hook.posts) == [("waiting", "embed"), ("waiting", "train")]
    assert "gpu (0 of 8 up)" in next(post["text"] for post in hook.posts if post["stage"] == "train")


def test_a_webhook_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
    hook: Hook, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notice, "PAUSE_S", 0.01)
    hook.answers = [503, 429, 204]
    notice.address(section(hook), run="one")
    notice.ended(0, "done", [])
    assert len(hook.posts) == 3
    hook.answers = [404]
    with caplog.at_level(logging.WARNING):
        notice.ended(0, "done", [])
    assert len(hook.posts) == 4
    [line] = caplog.messages
    assert line == "the webhook at 127.0.0.1 was not told of finished: HTTP 404"


def test_a_webhook_that_never_answers_costs_the_deadline_and_a_line_without_its_secret(
    hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    hook.delay_s = 30.0
    notice.address(section(hook, deadline_s=0.5), run="one")
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING):
        notice.ended(1, "failed", ["error: x"])
    assert 0.4 < time.monotonic() - begun < 10
    assert caplog.messages
    assert not [line for line in caplog.messages if "secret-part" in line]


def test_the_address_is_written_into_no_record_and_no_error(hook: Hook) -> None:
    config = Config(root="r", notice=section(hook), budget=Budget())
    assert "secret-part" not in json.dumps(config.model_dump(mode="json"))
    with pytest.raises(ConfigError, match="notice.webhook is no URL") as refused:
        parse({"root": "r", "notice": {"webhook": "hooks.example.org/secret-part"}}, "config.yaml")
    assert "secret-part" not in str(refused.value)
