"""/v1/embeddings, /v1/embeddings/image, /v1/classify, /v1/similarity."""

from __future__ import annotations

import base64
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Form, Response

from biomedclip_ray.config import Serve
from biomedclip_ray.search.outputs import convert
from biomedclip_ray.serve import schemas
from biomedclip_ray.serve.answers import Embedded, Problem, Vector
from biomedclip_ray.serve.backend import Backends
from biomedclip_ray.serve.errors import Refusal
from biomedclip_ray.serve.fetch import Fetcher
from biomedclip_ray.serve.inputs import Item, Wanted, read_file, read_items
from biomedclip_ray.serve.limits import Room
from biomedclip_ray.serve.observe import Metrics, notes
from biomedclip_ray.serve.wire import as_json, fetched, good_ones, lengths_of, usage_of


def add_vectors(app: FastAPI, backends: Backends, settings: Serve, room: Room, metrics: Metrics) -> None:
    """/v1/embeddings, /v1/embeddings/image, /v1/classify, /v1/similarity."""
    fetcher = Fetcher(settings)

    async def embedded(
        read: list[Wanted | Refusal], form: schemas.VectorForm, model: str | None, alone: bool
    ) -> Response:
        backend = backends.named(model)
        notes().count(len(read))
        entries = await fetched(fetcher, read)
        good = good_ones(entries, form.on_error == "item")
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
        usage = usage_of(answer.tokens, images)
        bundle = answer.bundle or (await backend.facts()).bundle
        return as_json({"object": "list", "data": data, "model": backend.name, "bundle": bundle, "usage": usage})

    @app.post("/v1/embeddings", response_model=schemas.EmbeddingsAnswer)
    async def embeddings(body: schemas.EmbeddingsBody) -> Response:
        """Unit vectors of texts and images, in OpenAI's shape; a data URI or a part says that an item is an image."""
        return await embedded(
            read_items(body.input, "input", settings), body, body.model, not isinstance(body.input, list)
        )

    @app.post("/v1/embeddings/image", response_model=schemas.EmbeddingsAnswer)
    async def image_embeddings(
        form: Annotated[schemas.UploadForm, Form(media_type="multipart/form-data")],
    ) -> Response:
        """Unit vectors of uploaded image files: a third fewer bytes than base64."""
        if len(form.file) > settings.max_items:
            raise Refusal(
                f"{len(form.file)} files; at most {settings.max_items} (serve.max_items)", code="too_many_items"
            )
        read: list[Wanted | Refusal] = []
        for n, each in enumerate(form.file):
            try:
                read.append(read_file(await each.read(), f"input[{n}]", settings))
            except Refusal as refusal:
                read.append(refusal)
        return await embedded(read, form, form.model, False)

    async def items_of(value: Any, param: str) -> list[Item]:
        return good_ones(await fetched(fetcher, read_items(value, param, settings)), False)

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
        usage = usage_of(answer.tokens, sum(isinstance(item, bytes) for item in items))
        return as_json({"object": "list", "data": data, "model": backend.name, "bundle": answer.bundle, "usage": usage})

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
        usage = usage_of(answer.tokens, sum(isinstance(item, bytes) for item in [*rows, *columns]))
        return as_json({"object": "list", "data": data, "model": backend.name, "bundle": answer.bundle, "usage": usage})


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


def _cut(values: np.ndarray, dimensions: int | None, settings: Serve) -> np.ndarray:
    """The whole vector, or its first `dimensions` values at unit length where the operator allows it;
    raises Refusal.
    """
    if dimensions is None:
        return values
    lengths = lengths_of(len(values), settings)
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
