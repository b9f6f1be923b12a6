"""Traces of served requests by OpenTelemetry, proxy to engine: Ray Serve makes the spans, this says where they go.

Serve takes the exporter from the environment that its processes start with, and nowhere else: `tracing_config` of an
application never reaches the proxy. So the cluster files set, on every node,

    RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH=biomedclip_ray.serve.tracing:exporters

and who wants traces names a collector beside it (OTEL_EXPORTER_OTLP_ENDPOINT; OpenTelemetry's other variables hold too)
and the share of the requests (RAY_SERVE_TRACING_SAMPLING_RATIO, 0.01 unless set). Without a collector nothing is sent.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

COLLECTORS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def exporters() -> list[SpanProcessor]:
    """What Serve gives the spans of one process to; it refuses a function that takes an argument."""
    if not any(os.environ.get(variable) for variable in COLLECTORS):
        return []
    # Imported here: a cluster that sends nothing needs only OpenTelemetry's API.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return [BatchSpanProcessor(OTLPSpanExporter())]
