"""The model and its index in one process: embeds, searches and classifies.

Both live together so that an answer never mixes two bundles while one replaces the other, and a search costs one hop.
Items of all requests share batches (`batching.py`); one forward pass takes up to `max_batch`. Images are decoded one by
one before they enter a batch, so a bad one is its own request's problem only. A vector that is not finite never leaves:
its item gets an error.

An engine that comes up has embedded a text and an image and searched its index. One that cannot raises, and Serve
leaves the old one where it is.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import ray

from biomedclip_ray.config import ConfigError, Serve
from biomedclip_ray.serve.answers import (
    Classified,
    Embedded,
    FoundFigure,
    MapPoints,
    ModelFacts,
    Problem,
    Question,
    Searched,
    Vector,
)
from biomedclip_ray.serve.backend import PROBE_TEXT, probe_image
from biomedclip_ray.serve.batching import Batcher
from biomedclip_ray.serve.inputs import IMAGE_ERRORS, TEXT_CHARS, Item
from biomedclip_ray.serve.pulse import Beacon
from biomedclip_ray.serve.reading import Reading

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

WITHDRAWN_S = 1.0
"""Seconds after which a search asks again whether its index is still there."""
HEALTH_S = 60.0
"""A batch that computes longer than this and the request timeout hangs: Serve then starts the replica anew."""


_WITHDRAWN = Problem(
    "the index was withdrawn, since something was erased from it: run the workflow again, which makes it anew",
    "index_withdrawn",
    status=503,
)


class _Text(NamedTuple):
    """A text as the model reads it: ids (context,) int64, how many of them are its tokens, whether it was cut."""

    ids: np.ndarray
    tokens: int
    truncated: bool


class Engine:
    """Loads a bundle and its index when made; every method may be called many times at once.

    Raises (when made): BundleError, BadIndexError; ConfigError when the index holds another model's vectors, or when
    the model gives vectors that are not finite.
    """

    def __init__(self, bundle: str, index: str, settings: Serve, application: str = "") -> None:
        """`application`: fingerprint of the arguments, which /v1/models shows."""
        # Imported here: the ingress and the driver import this file too, and need neither torch nor Lance.
        import torch

        from biomedclip_ray.clip.encoder import Encoder
        from biomedclip_ray.search.index import Index

        self._settings, resources = settings, settings.resources
        # Ray sets the threads by the CPUs asked for, at least one, however many the node has.
        torch.set_num_threads(resources.threads or len(os.sched_getaffinity(0)))
        self.encoder = Encoder.load(bundle, precision=settings.precision)
        self.encoder.batch = max(self.encoder.batch, resources.max_batch)
        self.index = Index.open(index)
        if self.index.bundle != self.encoder.bundle_id:
            raise ConfigError(
                f"the index {index} was made by bundle {self.index.bundle}, but {bundle} is {self.encoder.bundle_id}: "
                "serve an index and a bundle of the same run"
            )
        self._answer_once(bundle, index)
        # One thread computes, so that a batch has all cores it was given; others decode the next ones meanwhile.
        self._compute = ThreadPoolExecutor(1, "compute")
        self._decode = ThreadPoolExecutor(max(2, math.ceil(resources.cpus_per_replica)), "decode")
        self._lookup = ThreadPoolExecutor(4, "lookup")
        self._busy_since: float | None = None
        self._patience_s = max(HEALTH_S, resources.timeout_s)
        self._decoding = 0
        wait_s, most = resources.batch_wait_ms / 1000, resources.max_batch
        self._texts: Batcher[_Text, Vector | Problem] = Batcher(
            self._timed(self._encode_texts), self._compute, most, size=lambda text: text.tokens
        )
        self._images: Batcher[torch.Tensor, Vector | Problem] = Batcher(
            self._timed(self._encode_images), self._compute, most, wait_s, lambda: self._decoding
        )
        self._withdrawn, self._withdrawn_asked = False, float("-inf")
        self._beacon = Beacon(ray.util.get_node_ip_address())
        self._facts = self._gather_facts(application)

    def __del__(self) -> None:
        """Serve calls this when it ends a replica on purpose."""
        if "_beacon" in vars(self):
            self._beacon.close()

    def check_health(self) -> None:
        """Serve asks now and then, and starts the replica anew when this raises."""
        since = self._busy_since
        if since is not None and time.monotonic() - since > self._patience_s:
            raise RuntimeError(f"a batch has been computing for more than {self._patience_s:g} s")

    def _answer_once(self, bundle: str, index: str) -> None:
        """Embed a text and an image and search for them. Raises ConfigError. The first pass is slow: nobody waits for
        it.
        """
        for what, vectors in (
            ("text", self.encoder.encode_text([PROBE_TEXT])),
            ("image", self.encoder.encode_images([probe_image()])),
        ):
            if not np.isfinite(vectors).all():
                raise ConfigError(
                    f"the bundle {bundle} gives a vector that is not finite for a plain {what}: its weights"
                )
            if not self.index.search(vectors[0], 1):
                raise ConfigError(f"the index {index} finds nothing")

    async def arguments(self) -> Serve:
        """What the application was started with."""
        return self._settings

    async def facts(self) -> ModelFacts:
        """What is loaded; an answer means that everything is."""
        return self._facts

    async def embed(self, items: list[Item]) -> Embedded:
        """One `Vector` or `Problem` an item, in the order of the items."""
        vectors = await self._vectors(items)
        scale = self.index.settings.int8_scale
        return Embedded(self.encoder.bundle_id, vectors, self._beacon.address, scale)

    async def search(self, question: Question) -> Searched | Problem:
        """The next figures, best first, by what `question.by` says they are compared with; none of an index that was
        withdrawn more than `WITHDRAWN_S` ago: it may hold what was erased.
        """
        from pyarrow import ArrowException

        if await self._is_withdrawn():
            return _WITHDRAWN
        filters = question.filters
        for name, values, known in (
            ("kinds", filters.kinds, self._facts.kinds),
            ("licenses", filters.licenses, self._facts.licenses),
        ):
            unknown = sorted(set(values or ()) - set(known))
            if unknown:
                message = f"the index has no {unknown[0]!r}; it has {', '.join(sorted(known))}"
                return Problem(message, "unknown_filter", f"filters.{name}")
        reading = Reading(question.by)
        for param, parts in (("query", question.asked), ("without", question.without)):
            items = [part.item for part in parts]
            embeds = [item for item in items if item is not None and reading.needs_vector(item)]
            vectors = iter(await self._vectors(embeds))
            for n, part in enumerate(parts):
                needed = part.item is not None and reading.needs_vector(part.item)
                wrong = reading.take(param, part, next(vectors) if needed else None)
                if wrong is not None:
                    return replace(wrong, param=f"{param}[{n}]" if len(parts) > 1 else wrong.param or param)
        try:
            return await self._run(self._lookup, lambda: self._found(question, reading))
        except (OSError, ValueError) as error:
            if self.index.withdrawn():  # since it was asked: files of its table are gone
                return _WITHDRAWN
            if isinstance(error, OSError | ArrowException):  # the table's files, whose places are nobody's business
                raise
            return Problem(str(error), "wrong_query")  # a cursor, a pair_id or an index that do not go together

    def _found(self, question: Question, reading: Reading) -> Searched:
        from biomedclip_ray.search.query import Query, facets, find

        query = Query(tuple(reading.asked), tuple(reading.without), question.filters, question.group)
        page = find(self.index, query, question.k, question.cursor, thumbnails=True)
        counts = facets(self.index, query) if question.facets else None
        return Searched(
            self.encoder.bundle_id,
            [self._figure(result.hit, result.highlights, result.more) for result in page.results],
            reading.tokens,
            reading.truncated,
            self._beacon.address,
            page.cursor,
            None if counts is None else {name: {str(v): n for v, n in of.items()} for name, of in counts.items()},
        )

    def _figure(self, hit: Any, highlights: list[tuple[int, int]], more: list[Any]) -> FoundFigure:
        made = ("score", "withheld", "highlights", "more")
        columns = {name: hit.row.get(name) for name in FoundFigure.__dataclass_fields__ if name not in made}
        withheld = bool(columns["thumbnail"]) and columns["license"] not in self._settings.thumbnail_licenses
        if withheld:
            columns["thumbnail"] = None
        others = tuple(self._figure(other, [], []) for other in more)
        return FoundFigure(score=hit.score, withheld=withheld, highlights=tuple(highlights), more=others, **columns)

    async def classify(self, items: list[Item], labels: list[str], templates: list[str]) -> Classified:
        """Each answer: the labels' probabilities (labels,) float32."""
        from biomedclip_ray.clip.prompts import class_weights, classify

        embedded = await self.embed(items)
        weights = await self._run(self._compute, lambda: class_weights(self.encoder, labels, templates))
        scale = self.encoder.logit_scale
        if not np.isfinite(weights).all():
            wrong = Problem("the model gave a vector that is not finite for a label", "non_finite", "labels", 422)
            return Classified(self.encoder.bundle_id, [wrong] * len(items), self._beacon.address)
        answers = [
            item if isinstance(item, Problem) else classify(item.values[None], weights, scale)[0]
            for item in embedded.items
        ]
        return Classified(self.encoder.bundle_id, answers, self._beacon.address, embedded.tokens)

    async def points(self) -> MapPoints | Problem:
        """The index's map."""
        if await self._is_withdrawn():
            return _WITHDRAWN
        from biomedclip_ray.search.points import points

        return MapPoints(*await self._run(self._lookup, lambda: points(self.index)), self._beacon.address)

    async def _is_withdrawn(self) -> bool:
        if time.monotonic() - self._withdrawn_asked > WITHDRAWN_S:
            self._withdrawn = await self._run(self._lookup, self.index.withdrawn)
            self._withdrawn_asked = time.monotonic()
        return self._withdrawn

    async def _vectors(self, items: list[Item]) -> list[Vector | Problem]:
        texts = [item for item in items if isinstance(item, str)]
        read = iter(await self._run(self._decode, lambda: self._tokenized(texts)) if texts else [])
        return list(
            await asyncio.gather(
                *(self._texts(next(read)) if isinstance(item, str) else self._embed_image(item) for item in items)
            )
        )

    async def _embed_image(self, item: bytes) -> Vector | Problem:
        self._decoding += 1
        try:
            pixels = await self._run(self._decode, lambda: self._pixels(item))
        finally:
            self._decoding -= 1
        if isinstance(pixels, Problem):
            return pixels
        return await self._images(pixels)

    def _timed(self, work: Callable[[list[Any]], list[T]]) -> Callable[[list[Any]], list[T]]:
        """The same work, with a note of when it began (`check_health`)."""

        def noted(batch: list[Any]) -> list[T]:
            self._busy_since = time.monotonic()
            try:
                return work(batch)
            finally:
                self._busy_since = None

        return noted

    def _tokenized(self, texts: list[str]) -> list[_Text]:
        encoded = self.encoder.tokenizer.encode([text[:TEXT_CHARS] for text in texts])
        return [
            _Text(ids, tokens, truncated or len(text) > TEXT_CHARS)
            for ids, tokens, truncated, text in zip(
                encoded.ids, encoded.n_tokens, encoded.truncated, texts, strict=True
            )
        ]

    def _encode_texts(self, texts: list[_Text]) -> list[Vector | Problem]:
        vectors = self.encoder.encode_ids(np.stack([text.ids for text in texts]))
        return [
            _finite(Vector(vector, text.tokens, text.truncated)) for vector, text in zip(vectors, texts, strict=True)
        ]

    def _encode_images(self, images: list[torch.Tensor]) -> list[Vector | Problem]:
        import torch

        return [_finite(Vector(vector)) for vector in self.encoder.encode_pixels(torch.cat(images))]

    def _pixels(self, data: bytes) -> torch.Tensor | Problem:
        """uint8 (1, 3, size, size), or why the bytes cannot be decoded."""
        try:
            return self.encoder.pixels([data])
        except IMAGE_ERRORS as error:
            why = str(error).partition(" <_io.BytesIO")[0]  # Pillow names the object that it read from
            return Problem(f"the image cannot be decoded ({why})", "broken_image")

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def _gather_facts(self, application: str) -> ModelFacts:
        import torch

        kinds: Counter[str] = Counter()
        licenses: Counter[str] = Counter()
        years: list[int] = []
        for batch in self.index.dataset.to_batches(columns=["figure_kind", "license", "year"]):
            for counter, column in ((kinds, "figure_kind"), (licenses, "license")):
                for entry in batch[column].value_counts().to_pylist():
                    if entry["values"] is not None:
                        counter[entry["values"]] += entry["counts"]
            known = batch["year"].drop_null().to_numpy()
            if len(known):
                years = [int(np.min([*years, known.min()])), int(np.max([*years, known.max()]))]
        return ModelFacts(
            bundle=self.encoder.bundle_id,
            name=self.encoder.name,
            dimensions=self.encoder.dimensions,
            context_length=self.encoder.tokenizer.context_length,
            figures=sum(kinds.values()) if kinds else self.index.count(),
            kinds=dict(kinds),
            licenses=dict(licenses),
            years=(years[0], years[1]) if years else None,
            recall=self.index.settings.recall,
            output_recall=self.index.settings.output_recall,
            int8_scale=self.index.settings.int8_scale,
            application=application,
            device=self.encoder.device.type,
            precision=self.encoder.precision,
            precision_note=self.encoder.precision_note,
            threads=torch.get_num_threads(),
            engine=self._beacon.address,
        )


def _finite(vector: Vector) -> Vector | Problem:
    if np.isfinite(vector.values).all():
        return vector
    return Problem("the model gave a vector that is not finite for this item", "non_finite", status=422)
