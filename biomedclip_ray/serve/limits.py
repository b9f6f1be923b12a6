"""The two limits that bound an ingress: bytes of bodies before they are parsed, items that wait for the model.

Beyond either the answer comes in a millisecond, 413 or 429, so that those already waiting keep their time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from biomedclip_ray.serve.errors import error_response
from biomedclip_ray.serve.inputs import Refusal

T = TypeVar("T")

RETRY_AFTER_S = 1
BODIES_HELD = 8
"""Bodies of the largest size that may be in memory at once."""


class Room:
    """Counts the items under way and refuses beyond a limit; a request alone is always let in."""

    def __init__(self, max_items: int, timeout_s: float) -> None:
        self.max_items, self.timeout_s, self.items = max_items, timeout_s, 0

    @asynccontextmanager
    async def take(self, items: int) -> AsyncIterator[None]:
        if self.items and self.items + items > self.max_items:
            raise Refusal(
                f"busy: {self.items} texts and pictures are waiting, {items} more would pass {self.max_items} "
                "(serve.resources.max_queued); try again shortly",
                status=429,
                code="overloaded",
                retry_after=RETRY_AFTER_S,
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
            raise Refusal(
                f"the model did not answer within {limit:g} s: it is loading or overloaded",
                status=503,
                code="timeout",
                retry_after=RETRY_AFTER_S,
            ) from error


class BodyLimit:
    """Reads each body whole, and ends a request with 413 as soon as it is longer than `max_bytes`, by its header or by
    what came; with 429 when all bodies under way hold more than `BODIES_HELD` times that."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes, self.held = app, max_bytes, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        before = self.held
        chunks: list[bytes] = []
        taken = 0
        try:
            declared = dict(scope["headers"]).get(b"content-length", b"0")
            if declared.isdigit():
                self._check(int(declared), before)
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                chunk = message.get("body", b"")
                taken += len(chunk)
                self.held += len(chunk)
                self._check(taken, self.held - taken)
                chunks.append(chunk)
                more = message.get("more_body", False)
            body: Message | None = {"type": "http.request", "body": b"".join(chunks), "more_body": False}
            chunks.clear()

            async def replay() -> Message:
                nonlocal body
                message, body = body, None
                return message or await receive()

            await self.app(scope, replay, send)
        except _Door as door:
            await error_response(door.refusal)(scope, receive, send)
        finally:
            self.held -= taken

    def _check(self, length: int, others: int) -> None:
        """Raises _Door."""
        if length > self.max_bytes:
            raise _Door(
                Refusal(
                    f"the request has {length:,} bytes or more; at most {self.max_bytes:,} are taken "
                    "(serve.max_body_bytes): send fewer or smaller pictures",
                    status=413,
                    code="body_too_large",
                )
            )
        if others and others + length > BODIES_HELD * self.max_bytes:
            raise _Door(
                Refusal(
                    "busy: too many large requests at once; try again shortly",
                    status=429,
                    code="overloaded",
                    retry_after=RETRY_AFTER_S,
                )
            )


class _Door(Exception):
    """A body that is not let in; never leaves this file."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
