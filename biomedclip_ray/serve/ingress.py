"""The HTTP side: the routes and what stands before them. It knows neither torch nor Lance; `Engine` is all it asks.

    Observe (id, log, numbers) -> CORS -> Guard (hosts, keys, quotas) -> BodyLimit -> routes

Requests that wait for the model are counted in items, not in requests: a list of 256 weighs what 256 requests weigh.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response

from biomedclip_ray.config import Serve
from biomedclip_ray.serve import schemas
from biomedclip_ray.serve.access import Guard
from biomedclip_ray.serve.answers import ModelFacts
from biomedclip_ray.serve.backend import Backend, Backends, Engine
from biomedclip_ray.serve.cors import Cors
from biomedclip_ray.serve.errors import add_error_handlers
from biomedclip_ray.serve.limits import BodyLimit, Room
from biomedclip_ray.serve.mcp import add_mcp
from biomedclip_ray.serve.observe import Metrics, Observe
from biomedclip_ray.serve.page import add_page
from biomedclip_ray.serve.route_search import add_search
from biomedclip_ray.serve.route_vectors import add_vectors
from biomedclip_ray.serve.wire import as_json, lengths_of


def create_app(engines: Mapping[str, Engine], settings: Serve, behind_proxy: bool = False) -> FastAPI:
    """The application as any ASGI server runs it.

    Args:
        engines: by the name of the model; the first answers those who name none.
        behind_proxy: Serve's proxy puts the request's id into the answer, and traces it.
    """
    metrics = Metrics()
    room = Room(settings.resources.max_queued, settings.resources.timeout_s)
    metrics.waiting.set_function(lambda: room.items)
    backends = Backends({name: Backend(name, engine, room) for name, engine in engines.items()}, settings.aliases)

    # FastAPI's own documentation pages load scripts from elsewhere; /openapi.json says the same. Its own spans would
    # begin a trace of their own below the proxy's, and the engine's hang in that one.
    app = FastAPI(
        title="biomedclip_ray",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=schemas.ERRORS,
        telemetry={"tracing": not behind_proxy},
    )
    resources = settings.resources
    app.add_middleware(
        BodyLimit, max_bytes=settings.max_body_bytes, seconds=resources.body_timeout_s, max_depth=settings.max_depth
    )
    app.add_middleware(Guard, access=settings.access, host=resources.host)
    if settings.access.origins:
        app.add_middleware(Cors, origins=settings.access.origins)
    app.add_middleware(Observe, metrics=metrics, answers_id=not behind_proxy)
    add_error_handlers(app)
    add_page(app)
    _add_state(app, backends, settings, metrics)
    add_vectors(app, backends, settings, room, metrics)
    search = add_search(app, backends, settings, room)
    mcp_runs = add_mcp(app, search, settings.max_body_bytes)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with mcp_runs():
            yield

    app.router.lifespan_context = lifespan
    return app


def _add_state(app: FastAPI, backends: Backends, settings: Serve, metrics: Metrics) -> None:
    """/health, /ready, /metrics, /v1/models."""
    started = int(time.time())

    async def described(backend: Backend) -> dict[str, Any]:
        facts = await backend.facts()
        metrics.model.labels(backend.name, facts.bundle, str(facts.figures), facts.precision).set(1)
        return _model(backend.name, facts, settings, started)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", response_model=schemas.Alive)
    async def health() -> Response:
        """Alive: this process answers."""
        return as_json({"status": "alive"})

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", response_model=schemas.Ready)
    async def ready() -> Response:
        """Ready: each model embedded a text and an image within the last seconds that the configuration names."""
        within = settings.resources.ready_within_s
        ages = [await backend.ready(within) for backend in backends.models.values()]
        facts = await backends.named(None).facts()
        told = {"bundle": facts.bundle, "application": facts.application, "seconds_ago": round(max(ages), 3)}
        return as_json({"status": "ready", **told})

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def numbers() -> Response:
        """This process' numbers, for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", response_model=schemas.ModelsAnswer)
    async def models() -> Response:
        """Every model, as its engine says of itself, and what its index holds."""
        return as_json({"object": "list", "data": [await described(backend) for backend in backends.models.values()]})

    @app.get("/v1/models/{name:path}", response_model=schemas.Model)
    async def model(name: str) -> Response:
        """One model, by its id or an alias."""
        return as_json(await described(backends.named(name)))


def _model(name: str, facts: ModelFacts, settings: Serve, started: int) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": started,
        "owned_by": "biomedclip_ray",
        "aliases": [alias for alias, model in settings.aliases.items() if model == name],
        "name": facts.name,
        "bundle": facts.bundle,
        "application": facts.application,
        "dimensions": facts.dimensions,
        "output_dimensions": lengths_of(facts.dimensions, settings),
        "context_length": facts.context_length,
        "device": facts.device,
        "precision": facts.precision,
        "precision_note": facts.precision_note,
        "threads": facts.threads,
        "index": {
            "figures": facts.figures,
            "kinds": facts.kinds,
            "licenses": facts.licenses,
            "years": facts.years,
            "recall": facts.recall,
            "output_recall": facts.output_recall,
            "int8_scale": facts.int8_scale,
        },
        "limits": {
            "items": settings.max_items,
            "body_bytes": settings.max_body_bytes,
            "pixels": settings.max_pixels,
            "results": settings.max_results,
        },
    }
