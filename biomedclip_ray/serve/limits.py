"""The limits that bound an ingress: bytes, depth and time of bodies before they are parsed, items that wait for the
model.

Beyond any of them the answer comes in a millisecond (413, 400, 408, 429), so that those already waiting keep their
time.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from biomedclip_ray.serve.errors import Refusal, busy, error_response, unavailable

T = TypeVar("T")

BODIES_HELD = 8
"""Bodies of the largest size that may be in memory at once."""

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class Room:
    """Counts the items under way and refuses beyond a limit; a request alone is always let in."""

    def __init__(self, max_items: int, timeout_s: float) -> None:
        self.max_items, self.timeout_s, self.items = max_items, timeout_s, 0

    @asynccontextmanager
    async def take(self, items: int) -> AsyncIterator[None]:
        if self.items and self.items + items > self.max_items:
            raise busy(
                f"busy: {self.items} texts and images are waiting, {items} more would pass {self.max_items} "
                "(serve.resources.max_queued); try again shortly"
            )
        self.items += items
        try:
            yield
        finally:
            self.items -= items

    async def answer(self, work: Awaitable[T], timeout_s: float | None = None) -> T:
        """Wait for the engine, but not for ever; raises Refusal (503)."""
        limit = timeout_s or self.timeout_s
        try:
            return await asyncio.wait_for(work, limit)
        except TimeoutError as error:
            message = f"the model did not answer within {limit:g} s: it is loading or overloaded"
            raise unavailable(message, "timeout") from error


class BodyLimit:
    """Reads each body whole, and ends a request as soon as it breaks a limit; 415 where it is compressed.

    413 when it is longer than `max_bytes`, by its header or by what came; 408 when it has not come within `seconds`;
    400 when a JSON body opens more than `max_depth` brackets; 429 when all bodies under way hold more than
    `BODIES_HELD` times `max_bytes`.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float, max_depth: int) -> None:
        self.app, self.max_bytes, self.seconds, self.max_depth, self.held = app, max_bytes, seconds, max_depth, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            why = "Content-Encoding is set; send the body as it is (a compressed one may be of any length)"
            await error_response(Refusal(why, status=415, code="unknown_encoding"))(scope, receive, send)
            return
        before = self.held
        chunks: list[bytes] = []
        taken = 0
        end = time.monotonic() + self.seconds
        try:
            declared = headers.get(b"content-length", b"0")
            if declared.isdigit():
                self._check(int(declared), before)
            more = True
            while more:
                message = await self._next(receive, end)
                if message["type"] == "http.disconnect":
                    return
                chunk = message.get("body", b"")
                taken += len(chunk)
                self.held += len(chunk)
                self._check(taken, self.held - taken)
                chunks.append(chunk)
                more = message.get("more_body", False)
            whole = b"".join(chunks)
            chunks.clear()
            if b"json" in headers.get(b"content-type", b"").lower():
                self._check_depth(whole)
            body: Message | None = {"type": "http.request", "body": whole, "more_body": False}
            del whole

            async def replay() -> Message:
                nonlocal body
                message, body = body, None
                return message or await receive()

            await self.app(scope, replay, send)
        except _Door as door:
            await error_response(door.refusal)(scope, receive, send)
        finally:
            self.held -= taken

    async def _next(self, receive: Receive, end: float) -> Message:
        try:
            return await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except TimeoutError as error:
            message = f"the body did not come within {self.seconds:g} s (serve.resources.body_timeout_s)"
            raise _Door(Refusal(message, status=408, code="too_slow", headers={"Connection": "close"})) from error

    def _check(self, length: int, others: int) -> None:
        """Raises _Door."""
        if length > self.max_bytes:
            raise _Door(
                Refusal(
                    f"the request has {length:,} bytes or more; at most {self.max_bytes:,} are taken "
                    "(serve.max_body_bytes): send fewer or smaller images",
                    status=413,
                    code="body_too_large",
                )
            )
        if others and others + length > BODIES_HELD * self.max_bytes:
            raise _Door(busy("busy: too many large requests at once; try again shortly"))

    def _check_depth(self, body: bytes) -> None:
        """Raises _Door. Parsers recurse: a megabyte of brackets would end in the middle of one."""
        if body.count(b"[") + body.count(b"{") <= self.max_depth:
            return
        depth = 0
        for token in _TOKENS.finditer(body):
            first = body[token.start()]
            if first in b"[{":
                depth += 1
                if depth > self.max_depth:
                    message = f"the body opens more than {self.max_depth} brackets at once (serve.max_depth)"
                    raise _Door(Refusal(message, code="too_deep"))
            elif first in b"]}":
                depth -= 1


class _Door(Exception):
    """A body that is not let in; never leaves this file."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
