"""The model and its index in one process: embeds, searches and classifies.

Both live together so that an answer never mixes two bundles while one replaces the other, and a search costs one hop.
Items of all requests share batches: one waits up to `batch_wait_ms` for company, and one forward pass takes up to
`max_batch`. Pictures are decoded one by one before they enter a batch, so a bad one is its own request's problem only.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from ray import serve

from biomedclip_ray.config import ConfigError, ServeResources
from biomedclip_ray.serve.answers import Classified, Embedded, Facts, Figure, Found, Problem, Vector
from biomedclip_ray.serve.inputs import PICTURE_ERRORS, TEXT_CHARS, Item

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

COLUMNS = {"image": "image_vector", "caption": "text_vector"}


class Engine:
    """Loads a bundle and its index when made; every method may be called many times at once.

    Raises (when made): BundleError, BadIndexError; ConfigError when the index holds another model's vectors.
    """

    def __init__(self, bundle: str, index: str, resources: ServeResources) -> None:
        # Imported here: the ingress and the driver import this file too, and need neither torch nor Lance.
        from biomedclip_ray.clip.encoder import Encoder
        from biomedclip_ray.search.index import Index

        self.encoder = Encoder.load(bundle)
        self.encoder.batch = max(self.encoder.batch, resources.max_batch)
        self.index = Index.open(index)
        if self.index.bundle != self.encoder.bundle_id:
            raise ConfigError(
                f"the index {index} was made by bundle {self.index.bundle}, but {bundle} is {self.encoder.bundle_id}: "
                "serve an index and a bundle of the same run"
            )
        self._facts = self._gather_facts()
        # One thread computes, so that a batch has all cores it was given; others decode the next ones meanwhile.
        self._compute = ThreadPoolExecutor(1, "compute")
        self._decode = ThreadPoolExecutor(max(2, math.ceil(resources.cpus_per_replica)), "decode")
        self._lookup = ThreadPoolExecutor(4, "lookup")
        for queue in (self._texts, self._pictures):
            queue.set_max_batch_size(resources.max_batch)
            queue.set_batch_wait_timeout_s(resources.batch_wait_ms / 1000)
        self.encoder.encode_text(["a figure"])  # the first pass is slow; nobody should wait for it

    async def facts(self) -> Facts:
        """What is loaded; an answer means that everything is."""
        return self._facts

    async def embed(self, items: list[Item]) -> Embedded:
        """One `Vector` or `Problem` an item, in the order of the items."""
        return Embedded(self.encoder.bundle_id, list(await asyncio.gather(*(self._embed_one(item) for item in items))))

    async def search(self, query: Item, k: int, by: str, filters: dict[str, Any]) -> Found | Problem:
        """The k figures nearest to the query by picture, by caption or by their captions' words, best first."""
        from biomedclip_ray.search.filters import Filters

        for name, known in (("kinds", self._facts.kinds), ("licenses", self._facts.licenses)):
            unknown = sorted(set(filters.get(name) or ()) - set(known))
            if unknown:
                message = f"the index has no {unknown[0]!r}; it has {', '.join(sorted(known))}"
                return Problem(message, "unknown_filter", f"filters.{name}")
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in filters.items()}
        chosen = Filters(**values)
        if by == "words":
            if isinstance(query, bytes):
                return Problem("a picture has no words; search by image or by caption", "wrong_query", "by")
            words = query[:TEXT_CHARS]
            hits = await self._run(self._lookup, lambda: self.index.text_search(words, k, chosen, thumbnails=True))
            return Found(self.encoder.bundle_id, [_figure(hit) for hit in hits], truncated=len(query) > TEXT_CHARS)
        vector = await self._embed_one(query)
        if isinstance(vector, Problem):
            return Problem(vector.message, vector.code, "query")
        column: Any = COLUMNS[by]
        hits = await self._run(
            self._lookup, lambda: self.index.search(vector.values, k, column, chosen, thumbnails=True)
        )
        figures = [_figure(hit) for hit in hits]
        return Found(self.encoder.bundle_id, figures, vector.tokens, vector.truncated)

    async def classify(self, items: list[Item], labels: list[str], templates: list[str]) -> Classified:
        """Each answer: the labels' probabilities (labels,) float32."""
        from biomedclip_ray.clip.prompts import class_weights, classify

        embedded = await self.embed(items)
        weights = await self._run(self._compute, lambda: class_weights(self.encoder, labels, templates))
        scale = self.encoder.logit_scale
        answers = [
            item if isinstance(item, Problem) else classify(item.values[None], weights, scale)[0]
            for item in embedded.items
        ]
        return Classified(self.encoder.bundle_id, answers)

    async def _embed_one(self, item: Item) -> Vector | Problem:
        if isinstance(item, str):
            text: Vector = await self._texts(item)
            return text
        pixels = await self._run(self._decode, lambda: self._pixels(item))
        if isinstance(pixels, Problem):
            return pixels
        picture: Vector = await self._pictures(pixels)
        return picture

    @serve.batch
    async def _texts(self, texts: list[str]) -> list[Vector]:
        return await self._run(self._compute, lambda: self._encode_texts(texts))

    @serve.batch
    async def _pictures(self, pictures: list[torch.Tensor]) -> list[Vector]:
        return await self._run(self._compute, lambda: self._encode_pictures(pictures))

    def _encode_texts(self, texts: list[str]) -> list[Vector]:
        encoded = self.encoder.tokenizer.encode([text[:TEXT_CHARS] for text in texts])
        vectors = self.encoder.encode_ids(encoded.ids)
        return [
            Vector(vector, tokens, truncated or len(text) > TEXT_CHARS)
            for vector, tokens, truncated, text in zip(vectors, encoded.n_tokens, encoded.truncated, texts, strict=True)
        ]

    def _encode_pictures(self, pictures: list[torch.Tensor]) -> list[Vector]:
        import torch

        return [Vector(vector) for vector in self.encoder.encode_pixels(torch.cat(pictures))]

    def _pixels(self, data: bytes) -> torch.Tensor | Problem:
        """uint8 (1, 3, size, size), or why the bytes cannot be decoded."""
        try:
            return self.encoder.pixels([data])
        except PICTURE_ERRORS as error:
            return Problem(f"the picture cannot be decoded ({error})", "broken_image")

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def _gather_facts(self) -> Facts:
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
        return Facts(
            bundle=self.encoder.bundle_id,
            name=self.encoder.name,
            dimensions=self.encoder.dimensions,
            context_length=self.encoder.tokenizer.context_length,
            figures=sum(kinds.values()) if kinds else self.index.count(),
            kinds=dict(kinds),
            licenses=dict(licenses),
            years=(years[0], years[1]) if years else None,
        )


def _figure(hit: Any) -> Figure:
    return Figure(score=hit.score, **{name: hit.row[name] for name in Figure.__dataclass_fields__ if name != "score"})
