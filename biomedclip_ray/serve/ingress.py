"""The HTTP side: the routes and the page. It knows neither torch nor Lance; `Engine` is all it asks.

Requests that wait for the model are counted in items, not in requests: a list of 256 weighs what 256 requests weigh.
"""

from __future__ import annotations

import base64
import json
import time
from importlib import resources
from typing import Any, Literal, Protocol

import numpy as np
from fastapi import FastAPI, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from biomedclip_ray.config import Serve
from biomedclip_ray.images.formats import PICKER
from biomedclip_ray.serve.answers import Classified, Embedded, Facts, Found, Problem
from biomedclip_ray.serve.errors import add_error_handlers
from biomedclip_ray.serve.inputs import Item, Refusal, read_item, read_items
from biomedclip_ray.serve.limits import BodyLimit, Room

PAGE = {
    "index.html": "text/html; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

# Nothing from elsewhere, no inline script or style; data: and blob: are the thumbnails and the dropped picture.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

READY_TIMEOUT_S = 3.0
MAX_LABEL_CHARS = 1000
RESULTS = 20
"""Results of a search that names no k."""


class Engine(Protocol):
    """What answers: a model and an index somewhere. Raises Refusal when it cannot be reached or is full."""

    async def facts(self) -> Facts: ...
    async def embed(self, items: list[Item]) -> Embedded: ...
    async def search(self, query: Item, k: int, by: str, filters: dict[str, Any]) -> Found | Problem: ...
    async def classify(self, items: list[Item], labels: list[str], templates: list[str]) -> Classified: ...


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EmbeddingsBody(Body):
    input: Any = None
    model: str | None = None
    encoding_format: Any = None
    dimensions: int | None = None
    user: str | None = None


class SearchFilters(Body):
    kinds: list[str] | None = None
    licenses: list[str] | None = None
    year_from: int | None = None
    year_to: int | None = None


class SearchBody(Body):
    query: Any = None
    k: int | None = Field(default=None, ge=1)
    by: Literal["image", "caption", "words"] = "image"
    filters: SearchFilters = SearchFilters()
    model: str | None = None
    user: str | None = None


class ClassifyBody(Body):
    input: Any = None
    labels: list[str]
    templates: list[str] = ["{}"]
    model: str | None = None
    user: str | None = None


BODIES: dict[str, type[BaseModel]] = {
    "/v1/embeddings": EmbeddingsBody,
    "/v1/search": SearchBody,
    "/v1/classify": ClassifyBody,
}


def create_app(engine: Engine, settings: Serve, application: str) -> FastAPI:
    """The application as any ASGI server runs it; `application` tells in /v1/models which arguments it was built with."""
    # FastAPI's own documentation pages load scripts from elsewhere; /openapi.json says the same.
    app = FastAPI(title="biomedclip_ray", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    add_error_handlers(app, BODIES)
    _page(app)
    room = Room(settings.resources.max_queued, settings.resources.timeout_s)
    started = int(time.time())
    loaded: str | None = None

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, str]:
        """Alive: this process answers."""
        return {"status": "alive"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """Ready: model and index are loaded (503 before)."""
        nonlocal loaded
        if loaded and room.items:  # busy with real work, behind which the question would wait
            return {"status": "ready", "bundle": loaded}
        loaded = None
        loaded = (await room.answer(engine.facts(), READY_TIMEOUT_S)).bundle
        return {"status": "ready", "bundle": loaded}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model, and what its index holds."""
        return {"object": "list", "data": [_model(await room.answer(engine.facts()), settings, started, application)]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        _known_model(name, settings)
        return _model(await room.answer(engine.facts()), settings, started, application)

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsBody) -> Response:
        """Unit vectors in OpenAI's shape: a `data:image/...;base64,` URI is a picture, anything else a text."""
        if body.encoding_format not in (None, "float", "base64"):
            raise Refusal(
                f"encoding_format={body.encoding_format!r} is not known; it is float or base64",
                param="encoding_format",
                code="unknown_encoding_format",
            )
        _known_model(body.model, settings)
        items = read_items(body.input, "input", settings)
        async with room.take(len(items)):
            answer = await room.answer(engine.embed(items))
        vectors = answer.checked("input", alone=not isinstance(body.input, list))
        data = []
        for n, vector in enumerate(vectors):
            values = _cut(vector.values, body.dimensions, settings)
            shown = (
                base64.b64encode(values.astype("<f4").tobytes()).decode() if body.encoding_format == "base64" else None
            )
            embedding = values.tolist() if shown is None else shown
            data.append({"object": "embedding", "index": n, "embedding": embedding, "truncated": vector.truncated})
        return _json({"object": "list", "data": data, "model": settings.model_id, "usage": _usage(answer, items)})

    @app.post("/v1/search")
    async def search(body: SearchBody) -> Response:
        """Figures nearest to a text or a picture, best first; filters are applied before the search."""
        _known_model(body.model, settings)
        query = read_item(body.query, "query", settings)
        k = min(RESULTS, settings.max_results) if body.k is None else body.k
        if k > settings.max_results:
            raise Refusal(
                f"k={k}; at most {settings.max_results} (serve.max_results)", param="k", code="too_many_results"
            )
        async with room.take(1):
            found = await room.answer(engine.search(query, k, body.by, body.filters.model_dump()))
        if isinstance(found, Problem):
            raise found.refusal()
        return _json(
            {
                "object": "list",
                "data": [hit.body() for hit in found.hits],
                "model": settings.model_id,
                "bundle": found.bundle,
                "truncated": found.truncated,
                "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
            }
        )

    @app.post("/v1/classify")
    async def classify(body: ClassifyBody) -> Response:
        """Zero-shot: the probability of each label for each input; templates hold {} where the label goes."""
        _known_model(body.model, settings)
        items = read_items(body.input, "input", settings)
        labels = _labels(body, settings)
        async with room.take(len(items) + len(labels) * len(body.templates)):
            answer = await room.answer(engine.classify(items, labels, body.templates))
        alone = not isinstance(body.input, list)
        data = [
            {
                "index": n,
                "label": labels[int(row.argmax())],
                "probabilities": dict(zip(labels, row.tolist(), strict=True)),
            }
            for n, row in enumerate(answer.checked("input", alone=alone))
        ]
        return _json({"object": "list", "data": data, "model": settings.model_id, "bundle": answer.bundle})

    return app


def _labels(body: ClassifyBody, settings: Serve) -> list[str]:
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
        if max(len(value) for value in values) > MAX_LABEL_CHARS:
            raise Refusal(f"{name}: at most {MAX_LABEL_CHARS} characters each", param=name, code="too_long")
    return labels


def _cut(values: np.ndarray, dimensions: int | None, settings: Serve) -> np.ndarray:
    """The whole vector, or its first `dimensions` values at unit length where the operator allows it; raises Refusal."""
    lengths = sorted({len(values), *(d for d in settings.dimensions if d < len(values))})
    if dimensions is None:
        return values
    if dimensions not in lengths:
        raise Refusal(
            f"dimensions={dimensions}: this model gives {' or '.join(map(str, lengths))}; it was not trained to be cut to "
            "another length",
            param="dimensions",
            code="unsupported_dimensions",
        )
    short = values[:dimensions]
    return short / np.linalg.norm(short)


def _usage(answer: Embedded, items: list[Item]) -> dict[str, int]:
    """Tokens that the model read (after truncation); a picture costs none and is counted as itself."""
    pictures = sum(isinstance(item, bytes) for item in items)
    return {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens, "images": pictures}


def _model(facts: Facts, settings: Serve, started: int, application: str) -> dict[str, Any]:
    return {
        "id": settings.model_id,
        "object": "model",
        "created": started,
        "owned_by": "biomedclip_ray",
        "name": facts.name,
        "bundle": facts.bundle,
        "application": application,
        "dimensions": facts.dimensions,
        "context_length": facts.context_length,
        "index": {
            "figures": facts.figures,
            "kinds": facts.kinds,
            "licenses": facts.licenses,
            "years": facts.years,
        },
        "limits": {
            "items": settings.max_items,
            "body_bytes": settings.max_body_bytes,
            "pixels": settings.max_pixels,
            "results": settings.max_results,
        },
    }


def _known_model(name: str | None, settings: Serve) -> None:
    if name is not None and name != settings.model_id:
        raise Refusal(
            f"the model {name!r} does not exist here; this server has {settings.model_id!r}",
            status=404,
            param="model",
            code="model_not_found",
        )


def _json(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content, separators=(",", ":")), media_type="application/json")


def _page(app: FastAPI) -> None:
    """The page and its three files, read once; no other path is ever looked up."""
    folder = resources.files("biomedclip_ray.serve") / "page"
    files = {name: (folder / name).read_bytes() for name in PAGE}
    files["index.html"] = files["index.html"].replace(b"{formats}", PICKER.encode())
    headers = {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    def show(name: str) -> Response:
        return Response(files[name], media_type=PAGE[name], headers=headers)

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return show("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return show(name)
