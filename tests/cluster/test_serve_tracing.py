"""The spans of one request, from proxy to engine, as a collector gets them by OpenTelemetry's protocol over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.cluster.conftest import PATIENCE_S
from tests.cluster.served import Served, until

pytestmark = pytest.mark.slow

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PROXY = "proxy_http_request Ingress POST /v1/embeddings"
INGRESS = "replica_handle_request Ingress __call__"
ENGINE = "replica_handle_request Engine embed"


class Span(NamedTuple):
    trace: str
    id: str
    parent: str
    name: str


class Collector:
    """Keeps the spans that come, at the address and in the form of a real one."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collected = self.spans

        class Receive(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                told = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                for resource in told.resource_spans:
                    for scope in resource.scope_spans:
                        for span in scope.spans:
                            ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                            collected.append(Span(*ids, span.name))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """No line a request."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Receive)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()


def test_a_requests_spans_from_proxy_to_engine_reach_the_collector_under_the_callers_trace(
    collector: Collector, tmp_path: Path
) -> None:
    environment = {
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "biomedclip_ray.serve.tracing:exporters",
        "RAY_SERVE_TRACING_SAMPLING_RATIO": "1.0",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "200",  # milliseconds; 5,000 unless set
    }
    served = Served(tmp_path, nodes=0, environment=environment)
    try:
        asked = httpx.post(
            f"{served.url}/v1/embeddings",
            json={"input": "round cells"},
            headers={"traceparent": f"00-{TRACE}-{CALLER}-01"},
            timeout=PATIENCE_S,
        )
        assert asked.status_code == 200
        until(lambda: {span.name for span in _of(collector)} >= {PROXY, INGRESS, ENGINE}, lambda: str(collector.spans))
    finally:
        served.close()
    spans = {span.id: span for span in _of(collector)}
    [engine] = [span for span in spans.values() if span.name == ENGINE]
    above, parent = [], engine.parent
    while parent != CALLER:  # all hang together, below the caller's own
        above.append(spans[parent].name)
        parent = spans[parent].parent
    assert [name for name in above if not name.startswith("route_to_replica")] == [INGRESS, PROXY]


def _of(collector: Collector) -> list[Span]:
    return [span for span in collector.spans if span.trace == TRACE]
