"""What is known about a request while it runs, and what is left of it: an id, a log line in JSON, numbers for
Prometheus.

Numbers are those of one ingress process, labelled with its id: behind several, a scrape of /metrics meets one of them,
and Ray's own metrics (which each node exports) count all.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from biomedclip_ray.serve.errors import Refusal, error_response

log = logging.getLogger("ray.serve")

_GOOD_ID = re.compile(r"[\w.:-]{1,128}")
NOBODY = 499
"""Status in the log of a request whose client hung up before its answer."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass
class Notes:
    """Of the request that this task answers; routes and middleware write here."""

    request_id: str
    key: str = "none"
    items: int = 0
    tokens: int = 0
    spend: Callable[[int], None] = field(default=lambda items: None)
    """Takes items from the key's quota; raises Refusal (429)."""

    def count(self, items: int) -> None:
        """Note what the request asks for. Raises Refusal where the key's quota has not as many left."""
        self.items += items
        self.spend(items)


_NOTES: ContextVar[Notes | None] = ContextVar("notes", default=None)


def notes() -> Notes:
    """The running request's notes (outside of one: some that nobody reads)."""
    return _NOTES.get() or Notes("")


class Metrics:
    """One ingress process' numbers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        one = self.registry
        self.process = uuid.uuid4().hex[:8]
        self.requests = Counter("biomedclip_requests", "Requests by answer", ("route", "key", "status"), registry=one)
        self.seconds = Histogram(
            "biomedclip_request_seconds", "Time to answer", ("route",), buckets=_SECONDS, registry=one
        )
        self.items = Counter("biomedclip_items", "Texts and images asked for", ("route", "key"), registry=one)
        self.tokens = Counter("biomedclip_tokens", "Tokens that the model read", ("route", "key"), registry=one)
        self.item_errors = Counter(
            "biomedclip_item_errors", "Items refused or failed, by code", ("code",), registry=one
        )
        self.item_errors.labels("non_finite")  # from 0 on: of a series that is born with 1 nobody sees an increase
        self.waiting = Gauge("biomedclip_items_waiting", "Texts and images under way", registry=one)
        self.model = Gauge(
            "biomedclip_model_info",
            "1 for each model served",
            ("model", "bundle", "figures", "precision"),
            registry=one,
        )
        Gauge("biomedclip_ingress_info", "This process", ("process",), registry=one).labels(self.process).set(1)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)


class Observe:
    """The outermost layer: gives each request an id, and tells of each answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics, answers_id: bool) -> None:
        """`answers_id`: nobody outside puts the id into the answer (Serve's proxy does)."""
        self.app, self.metrics, self.answers_id = app, metrics, answers_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        noted = Notes(given if _GOOD_ID.fullmatch(given) else uuid.uuid4().hex)
        token = _NOTES.set(noted)
        began = time.perf_counter()
        status = NOBODY

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.answers_id:
                    message["headers"] = [*message.get("headers", ()), (b"x-request-id", noted.request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, tell)
        except Exception as error:  # the one place where a fault of ours ends: logged whole, told without its inside
            log.error(
                "%s %s failed", scope["method"], scope["path"], exc_info=error, extra={"request_id": noted.request_id}
            )
            if status == NOBODY:
                failed = Refusal("the server failed; its log says how", status=500, code="internal_error")
                await error_response(failed)(scope, receive, tell)
        finally:
            _NOTES.reset(token)
            self._record(scope, noted, status, time.perf_counter() - began)

    def _record(self, scope: Scope, noted: Notes, status: int, seconds: float) -> None:
        # a path that nobody knows is no label: strangers would make new ones without end
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.requests.labels(route, noted.key, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if noted.items:
            self.metrics.items.labels(route, noted.key).inc(noted.items)
        if noted.tokens:
            self.metrics.tokens.labels(route, noted.key).inc(noted.tokens)
        level = logging.WARNING if status >= 500 else logging.INFO
        log.log(
            level,
            "%s %s %d in %.1f ms",
            scope["method"],
            route,
            status,
            1000 * seconds,
            extra={
                "request_id": noted.request_id,
                "http_route": route,
                "http_status": status,
                "milliseconds": round(1000 * seconds, 1),
                "key": noted.key,
                "items": noted.items,
                "tokens": noted.tokens,
            },
        )
