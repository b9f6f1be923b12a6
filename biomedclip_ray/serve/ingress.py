"""The HTTP side: the routes and what stands before them. It knows neither torch nor Lance; `Engine` is all it asks.

    Observe (id, log, numbers) -> Guard (hosts, keys, quotas) -> CORS -> BodyLimit -> routes

Requests that wait for the model are counted in items, not in requests: a list of 256 weighs what 256 requests weigh.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, File, Form, Response, UploadFile
from starlette.middleware.cors import CORSMiddleware

from biomedclip_ray.config import Serve
from biomedclip_ray.search.outputs import convert
from biomedclip_ray.serve import schemas
from biomedclip_ray.serve.access import Guard
from biomedclip_ray.serve.answers import Embedded, Facts, Part, Problem, Question, Vector
from biomedclip_ray.serve.backend import Backend, Backends, Engine
from biomedclip_ray.serve.errors import Refusal, add_error_handlers
from biomedclip_ray.serve.fetch import Fetcher
from biomedclip_ray.serve.inputs import Fetch, Figure, Item, Sought, Wanted, read_file, read_items, read_sought
from biomedclip_ray.serve.limits import BodyLimit, Room
from biomedclip_ray.serve.mcp import Search, add_mcp
from biomedclip_ray.serve.observe import Metrics, Observe, notes
from biomedclip_ray.serve.page import add_page

RESULTS = 20
"""Results of a search that names no k."""


def create_app(engines: Mapping[str, Engine], settings: Serve, behind_proxy: bool = False) -> FastAPI:
    """The application as any ASGI server runs it.

    Args:
        engines: by the name of the model; the first answers those who name none.
        behind_proxy: Serve's proxy puts the request's id into the answer.
    """
    metrics = Metrics()
    room = Room(settings.resources.max_queued, settings.resources.timeout_s)
    metrics.waiting.set_function(lambda: room.items)
    backends = Backends({name: Backend(name, engine, room) for name, engine in engines.items()}, settings.aliases)

    # FastAPI's own documentation pages load scripts from elsewhere; /openapi.json says the same.
    app = FastAPI(
        title="biomedclip_ray", docs_url=None, redoc_url=None, redirect_slashes=False, responses=schemas.ERRORS
    )
    resources = settings.resources
    app.add_middleware(
        BodyLimit, max_bytes=settings.max_body_bytes, seconds=resources.body_timeout_s, max_depth=settings.max_depth
    )
    if settings.access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )
    app.add_middleware(Guard, access=settings.access, host=resources.host)
    app.add_middleware(Observe, metrics=metrics, answers_id=not behind_proxy)
    add_error_handlers(app, schemas.BODIES)
    add_page(app)
    _add_state(app, backends, settings, metrics)
    _add_vectors(app, backends, settings, room, metrics)
    search = _add_search(app, backends, settings, room)
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
        return _json({"status": "alive"})

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", response_model=schemas.Ready)
    async def ready() -> Response:
        """Ready: each model embedded a text and an image within the last seconds that the configuration names."""
        within = settings.resources.ready_within_s
        ages = [await backend.ready(within) for backend in backends.models.values()]
        facts = await backends.named(None).facts()
        told = {"bundle": facts.bundle, "application": facts.application, "seconds_ago": round(max(ages), 3)}
        return _json({"status": "ready", **told})

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def numbers() -> Response:
        """This process' numbers, for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", response_model=schemas.ModelsAnswer)
    async def models() -> Response:
        """Every model, as its engine says of itself, and what its index holds."""
        return _json({"object": "list", "data": [await described(backend) for backend in backends.models.values()]})

    @app.get("/v1/models/{name:path}", response_model=schemas.Model)
    async def model(name: str) -> Response:
        """One model, by its id or an alias."""
        return _json(await described(backends.named(name)))


def _add_vectors(app: FastAPI, backends: Backends, settings: Serve, room: Room, metrics: Metrics) -> None:
    """/v1/embeddings, /v1/embeddings/image, /v1/classify, /v1/similarity."""
    fetcher = Fetcher(settings)

    async def embedded(
        read: list[Wanted | Refusal], form: schemas.VectorForm, model: str | None, alone: bool
    ) -> Response:
        backend = backends.named(model)
        notes().count(len(read))
        entries = await _fetched(fetcher, read)
        good = _good(entries, settings if form.on_error == "item" else None)
        async with room.take(len(good)):
            answer = await backend.embed(good) if good else Embedded("", [])
        if form.on_error == "fail":
            answer.checked("input", alone=alone)
        notes().tokens += answer.tokens
        vectors = iter(answer.items)
        data = []
        for n, entry in enumerate(entries):
            found = entry if isinstance(entry, Refusal) else next(vectors)
            if isinstance(found, Problem):
                found = found.refusal("input" if alone else f"input[{n}]")
            if isinstance(found, Refusal):
                metrics.item_errors.labels(found.code).inc()
            data.append(_embedding(n, found, form, settings, answer.int8_scale))
        images = sum(isinstance(item, bytes) for item in good)
        usage = _usage(answer.tokens, images)
        bundle = answer.bundle or (await backend.facts()).bundle
        return _json({"object": "list", "data": data, "model": backend.name, "bundle": bundle, "usage": usage})

    @app.post("/v1/embeddings", response_model=schemas.EmbeddingsAnswer)
    async def embeddings(body: schemas.EmbeddingsBody) -> Response:
        """Unit vectors of texts and images, in OpenAI's shape; a data URI or a part says that an item is an image."""
        return await embedded(
            read_items(body.input, "input", settings), body, body.model, not isinstance(body.input, list)
        )

    @app.post("/v1/embeddings/image", response_model=schemas.EmbeddingsAnswer)
    async def image_embeddings(
        file: Annotated[list[UploadFile], File(description="One or more image files.")],
        form: Annotated[schemas.VectorForm, Form()],
        model: Annotated[str | None, Form()] = None,
    ) -> Response:
        """Unit vectors of uploaded image files: a third fewer bytes than base64."""
        if len(file) > settings.max_items:
            raise Refusal(f"{len(file)} files; at most {settings.max_items} (serve.max_items)", code="too_many_items")
        read: list[Wanted | Refusal] = []
        for n, each in enumerate(file):
            try:
                read.append(read_file(await each.read(), f"input[{n}]", settings))
            except Refusal as refusal:
                read.append(refusal)
        return await embedded(read, form, model, False)

    async def items_of(value: Any, param: str) -> list[Item]:
        return _good(await _fetched(fetcher, read_items(value, param, settings)), None)

    @app.post("/v1/classify", response_model=schemas.ClassifyAnswer)
    async def classify(body: schemas.ClassifyBody) -> Response:
        """Zero-shot: the probability of each label for each input; templates hold {} where the label goes."""
        backend = backends.named(body.model)
        labels = _labels(body, settings)
        items = await items_of(body.input, "input")
        texts = len(labels) * len(body.templates)
        notes().count(len(items) + texts)
        async with room.take(len(items) + texts):
            answer = await backend.classify(items, labels, body.templates)
        notes().tokens += answer.tokens
        data = [
            {
                "index": n,
                "label": labels[int(row.argmax())],
                "probabilities": dict(zip(labels, row.tolist(), strict=True)),
            }
            for n, row in enumerate(answer.checked("input", alone=not isinstance(body.input, list)))
        ]
        usage = _usage(answer.tokens, sum(isinstance(item, bytes) for item in items))
        return _json({"object": "list", "data": data, "model": backend.name, "bundle": answer.bundle, "usage": usage})

    @app.post("/v1/similarity", response_model=schemas.SimilarityAnswer)
    async def similarity(body: schemas.SimilarityBody) -> Response:
        """The cosine of each item of `input` with each of `against`."""
        backend = backends.named(body.model)
        rows, columns = await items_of(body.input, "input"), await items_of(body.against, "against")
        notes().count(len(rows) + len(columns))
        async with room.take(len(rows) + len(columns)):
            answer = await backend.embed([*rows, *columns])
        notes().tokens += answer.tokens
        sides = (
            ("input", body.input, answer.items[: len(rows)]),
            ("against", body.against, answer.items[len(rows) :]),
        )
        left, right = (
            np.stack([v.values for v in Embedded("", part).checked(name, alone=not isinstance(given, list))])
            for name, given, part in sides
        )
        data = [{"index": n, "similarities": row} for n, row in enumerate((left @ right.T).tolist())]
        usage = _usage(answer.tokens, sum(isinstance(item, bytes) for item in [*rows, *columns]))
        return _json({"object": "list", "data": data, "model": backend.name, "bundle": answer.bundle, "usage": usage})


def _add_search(app: FastAPI, backends: Backends, settings: Serve, room: Room) -> Search:
    """/v1/search; returns what answers it."""
    fetcher = Fetcher(settings)

    async def found_for(body: schemas.SearchBody) -> dict[str, Any]:
        backend = backends.named(body.model)
        asked = read_sought(body.query, "query", settings)
        without = [] if body.without is None else read_sought(body.without, "without", settings)
        k = min(RESULTS, settings.max_results) if body.k is None else body.k
        if k > settings.max_results:
            raise Refusal(
                f"k={k}; at most {settings.max_results} (serve.max_results); `next` is the cursor of the page behind",
                param="k",
                code="too_many_results",
            )
        parts = await asyncio.gather(*(part_of(each) for each in [*asked, *without]))
        notes().count(len(parts))
        question = Question(
            asked=tuple(parts[: len(asked)]),
            k=k,
            by=body.by,
            without=tuple(parts[len(asked) :]),
            filters=body.filters,
            group=body.group,
            cursor=body.cursor,
            facets=body.facets,
        )
        async with room.take(len(parts)):
            found = await backend.search(question)
        notes().tokens += found.tokens
        return {
            "object": "list",
            "data": [hit.body() for hit in found.hits],
            "model": backend.name,
            "bundle": found.bundle,
            "truncated": found.truncated,
            "next": found.cursor,
            "facets": found.facets,
            "usage": _usage(found.tokens, sum(isinstance(part.item, bytes) for part in parts)),
        }

    async def part_of(sought: Sought) -> Part:
        if isinstance(sought.what, Figure):
            return Part(None, sought.what.pair_id, sought.weight)
        (item,) = _good(await _fetched(fetcher, [sought.what]), None)
        return Part(item, weight=sought.weight)

    @app.post("/v1/search", response_model=schemas.SearchAnswer)
    async def search(body: schemas.SearchBody) -> Response:
        """Figures like texts, images or other figures, best first; filters are applied before the search."""
        return _json(await found_for(body))

    return found_for


async def _fetched(fetcher: Fetcher, read: list[Wanted | Refusal]) -> list[Item | Refusal]:
    """The items, those at an address fetched; one that cannot be is a Refusal in its place."""

    async def one(entry: Wanted | Refusal) -> Item | Refusal:
        if not isinstance(entry, Fetch):
            return entry
        try:
            return await fetcher.get(entry)
        except Refusal as refusal:
            return refusal

    return [await one(entry) for entry in read] if len(read) == 1 else list(await asyncio.gather(*map(one, read)))


def _good(entries: list[Item | Refusal], lenient: Serve | None) -> list[Item]:
    """The items; raises the first Refusal among them unless each item may have its own."""
    for entry in entries:
        if isinstance(entry, Refusal) and lenient is None:
            raise entry
    return [entry for entry in entries if not isinstance(entry, Refusal)]


def _embedding(
    n: int, found: Vector | Refusal, form: schemas.VectorForm, settings: Serve, int8_scale: float
) -> dict[str, Any]:
    """As `schemas.Embedding`; raises Refusal for a length that is not given here."""
    if isinstance(found, Refusal):
        nothing = {"object": "embedding", "index": n, "embedding": None, "truncated": False, "tokens": 0}
        return {**nothing, "error": found.body()["error"]}
    values = convert(_cut(found.values, form.dimensions, settings), form.output_dtype, int8_scale)
    # OpenAI's client asks for base64 always, and reads what comes as float32: other types are lists
    coded = form.encoding_format == "base64" and form.output_dtype == "float32"
    return {
        "object": "embedding",
        "index": n,
        "embedding": base64.b64encode(values.astype("<f4").tobytes()).decode() if coded else values.tolist(),
        "truncated": found.truncated,
        "tokens": found.tokens,
    }


def _labels(body: schemas.ClassifyBody, settings: Serve) -> list[str]:
    """The labels, at least two and each once, with templates that have a place for them; raises Refusal."""
    labels = [label.strip() for label in body.labels]
    texts = len(labels) * len(body.templates)
    if len(labels) < 2 or not all(labels) or len(set(labels)) < len(labels):
        raise Refusal("labels must be two or more different, non-empty strings", param="labels", code="bad_labels")
    if not body.templates or not all("{}" in template for template in body.templates):
        raise Refusal(
            'templates: each needs {} where the label goes, as in "a figure of {}"',
            param="templates",
            code="bad_template",
        )
    if texts > settings.max_items:
        raise Refusal(
            f"{len(labels)} labels x {len(body.templates)} templates are {texts} texts; this server takes at most "
            f"{settings.max_items} (serve.max_items)",
            param="labels",
            code="too_many_items",
        )
    for name, values in (("labels", body.labels), ("templates", body.templates)):
        if max(len(value) for value in values) > schemas.MAX_LABEL_CHARS:
            raise Refusal(f"{name}: at most {schemas.MAX_LABEL_CHARS} characters each", param=name, code="too_long")
    return labels


def _lengths(whole: int, settings: Serve) -> list[int]:
    return sorted({whole, *(d for d in settings.dimensions if d < whole)})


def _cut(values: np.ndarray, dimensions: int | None, settings: Serve) -> np.ndarray:
    """The whole vector, or its first `dimensions` values at unit length where the operator allows it;
    raises Refusal.
    """
    if dimensions is None:
        return values
    lengths = _lengths(len(values), settings)
    if dimensions not in lengths:
        raise Refusal(
            f"dimensions={dimensions}: this model gives {' or '.join(map(str, lengths))}; it was not trained to be "
            "cut to "
            "another length",
            param="dimensions",
            code="unsupported_dimensions",
        )
    short = values[:dimensions]
    length = float(np.linalg.norm(short))
    return short / np.float32(length if length > 0 else 1.0)


def _usage(tokens: int, images: int) -> dict[str, int]:
    """Tokens that the model read (after truncation); an image costs none and is counted as itself."""
    return {"prompt_tokens": tokens, "total_tokens": tokens, "images": images}


def _model(name: str, facts: Facts, settings: Serve, started: int) -> dict[str, Any]:
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
        "output_dimensions": _lengths(facts.dimensions, settings),
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


def _json(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content, separators=(",", ":")), media_type="application/json")
