"""503 within a second where no ingress is left, and errors in one shape: a middleware of Serve's own proxy.

The proxy holds what nobody is there for until somebody is, however long. So each ingress beats as engines do
(`pulse.py`), and says where in a header of every answer, which is taken off here; when none of them beats any more,
what waits is refused. Ray puts this before its proxies, and ingresses say where they beat, where Ray was started on
every node with

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=biomedclip_ray.serve.gate:middlewares

in its environment. It knows of one application, at "/": a Serve that runs others beside it goes without.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import MutableMapping
from typing import Any

import ray
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from biomedclip_ray.serve.errors import CODES, Refusal, busy, error_response, unavailable
from biomedclip_ray.serve.pulse import Address, Beacon, Pulse

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
HEADER = b"x-biomedclip-beats-at"
SILENCE_S, HUNG_S, LOOK_S = 0.75, 5.0, 0.6
"""A process that died breaks its connection at once, and another ingress has this long to answer; a node that died is
silent for a second first, with the time that it is asked."""


def middlewares() -> list[Middleware]:
    """What Ray asks for."""
    return [Middleware(Gate)]


class Gate:
    """The proxy's side."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._pulse = Pulse(self._look, SILENCE_S, HUNG_S, LOOK_S, "the process that reads requests")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False
        refusal: Refusal | None = None

        async def heard(message: Message) -> None:
            nonlocal begun, refusal
            if message["type"] == "http.response.start":
                beats_at = _taken_off(message)
                self._pulse.heard(beats_at)
                refusal = _in_our_shape(message) if beats_at is None else None
                begun = refusal is None
            if refusal is None:
                await send(message)

        try:
            await self._pulse.guard(self._app(scope, receive, heard))
        except Refusal as lost:
            if begun:  # it is too late for a status: the connection is closed
                raise
            refusal = lost
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)

    async def _look(self) -> Address | None:
        """Where the ingress beats that answers first."""
        found: list[Address | None] = []
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if asked:
                await asyncio.Event().wait()  # who asks stays on the line
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                found.append(_taken_off(message))

        url = {"scheme": "http", "path": "/health", "raw_path": b"/health", "root_path": "", "query_string": b""}
        ends = {"client": ("127.0.0.1", 0), "server": ("127.0.0.1", 0), "headers": [(b"host", b"127.0.0.1")]}
        head = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET"}
        await self._app({**head, **url, **ends}, receive, send)
        return found[0] if found else None


class Told:
    """The ingress' side: where it beats, in every answer, where a gate takes that off again."""

    def __init__(self, app: ASGIApp, beacon: Beacon) -> None:
        self._app = app
        self._header = (HEADER, ":".join(map(str, beacon.address)).encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), self._header]
            await send(message)

        await self._app(scope, receive, told)


def beacon() -> Beacon | None:
    """Of an ingress; None where no gate listens."""
    gated = os.environ.get(VARIABLE) == f"{__name__}:{middlewares.__name__}"
    return Beacon(ray.util.get_node_ip_address()) if gated else None


def _in_our_shape(message: MutableMapping[str, Any]) -> Refusal | None:
    """For an error of the proxy's own, which no ingress made: it is plain text, and of an ingress that went away with
    the request in hand a 500 with addresses and process ids of this cluster.
    """
    status = message["status"]
    kind = next((value for name, value in message["headers"] if name.lower() == b"content-type"), b"")
    if status < 400 or not kind.startswith(b"text/plain"):
        return None
    if status == 429:
        return busy("busy; try again shortly")
    if status in (500, 503):
        return unavailable("the process that had this request went away and is being replaced; try again shortly")
    return Refusal(f"Ray Serve answers {status} itself", status=status, code=CODES.get(status, "error"))


def _taken_off(message: MutableMapping[str, Any]) -> Address | None:
    """Where the ingress beats that gave this answer, which then says no more of it."""
    told = [value for name, value in message["headers"] if name.lower() == HEADER]
    if not told:
        return None
    message["headers"] = [one for one in message["headers"] if one[0].lower() != HEADER]
    host, _, port = told[0].decode().rpartition(":")
    return host, int(port)
