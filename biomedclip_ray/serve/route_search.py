"""/v1/search and /v1/map."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from fastapi import FastAPI, Response

from biomedclip_ray.config import Serve
from biomedclip_ray.serve import schemas
from biomedclip_ray.serve.answers import Part, Question
from biomedclip_ray.serve.backend import Backends
from biomedclip_ray.serve.errors import Refusal
from biomedclip_ray.serve.fetch import Fetcher
from biomedclip_ray.serve.inputs import FigureId, Sought, read_sought
from biomedclip_ray.serve.limits import Room
from biomedclip_ray.serve.mcp import Search
from biomedclip_ray.serve.observe import notes
from biomedclip_ray.serve.wire import as_json, fetched, good_ones, usage_of

RESULTS = 20
"""Results of a search that names no k."""


def add_search(app: FastAPI, backends: Backends, settings: Serve, room: Room) -> Search:
    """Both routes; returns what answers a search."""
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
            "usage": usage_of(found.tokens, sum(isinstance(part.item, bytes) for part in parts)),
        }

    async def part_of(sought: Sought) -> Part:
        if isinstance(sought.what, FigureId):
            return Part(None, sought.what.pair_id, sought.weight)
        (item,) = good_ones(await fetched(fetcher, [sought.what]), False)
        return Part(item, weight=sought.weight)

    @app.post("/v1/search", response_model=schemas.SearchAnswer)
    async def search(body: schemas.SearchBody) -> Response:
        """Figures like texts, images or other figures, best first; filters are applied before the search."""
        return as_json(await found_for(body))

    @app.get("/v1/map", response_model=schemas.MapAnswer)
    async def figure_map(model: str | None = None) -> Response:
        """The figures of a model's index on a plane: all, or 100,000 drawn evenly."""
        points = await backends.named(model).points()
        # in float64, where four places are four: a float32 is written with seventeen
        x, y = (np.round(each.astype(np.float64), 4).tolist() for each in (points.x, points.y))
        return as_json({"x": x, "y": y, "kind": points.kind.tolist(), "kinds": points.kinds, "ids": points.ids})

    return found_for
