"""A served model as the ingress knows it: what it asks the engine, and when the engine last proved that it works."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from PIL import Image

from biomedclip_ray.serve.answers import (
    Answers,
    Classified,
    Embedded,
    MapPoints,
    ModelFacts,
    Problem,
    Question,
    Searched,
)
from biomedclip_ray.serve.errors import Refusal, unavailable
from biomedclip_ray.serve.inputs import Item
from biomedclip_ray.serve.limits import Room

T = TypeVar("T")

PROBE_TEXT = "a figure"
READY_TIMEOUT_S = 3.0
_NEVER = float("-inf")


class Engine(Protocol):
    """What answers: a model and an index somewhere. Raises Refusal when it cannot be reached or is full."""

    async def facts(self) -> ModelFacts: ...
    async def embed(self, items: list[Item]) -> Embedded: ...
    async def search(self, question: Question) -> Searched | Problem: ...
    async def classify(self, items: list[Item], labels: list[str], templates: list[str]) -> Classified: ...
    async def points(self) -> MapPoints | Problem: ...


class Backend:
    """One model of this server."""

    def __init__(self, name: str, engine: Engine, room: Room) -> None:
        self.name, self.engine, self._room = name, engine, room
        self._probe: list[Item] = [PROBE_TEXT, probe_image()]
        self._proved: dict[type, float] = {str: _NEVER, bytes: _NEVER}

    async def facts(self) -> ModelFacts:
        return await self._room.answer(self.engine.facts())

    async def embed(self, items: list[Item]) -> Embedded:
        """As the engine has it; what came is taken for a proof that the model works, or that it does not."""
        answer = await self._room.answer(self.engine.embed(items))
        self._note(items, answer)
        return answer

    async def search(self, question: Question) -> Searched:
        found = await self._room.answer(self.engine.search(question))
        if isinstance(found, Problem):
            raise found.refusal()
        return found

    async def classify(self, items: list[Item], labels: list[str], templates: list[str]) -> Classified:
        return await self._room.answer(self.engine.classify(items, labels, templates))

    async def points(self) -> MapPoints:
        points = await self._room.answer(self.engine.points())
        if isinstance(points, Problem):
            raise points.refusal()
        return points

    async def ready(self, within_s: float) -> float:
        """Seconds since both towers last gave finite vectors: at most `within_s`.

        Raises Refusal (503) where they have not, and do not when asked for some.
        """
        if self._age() > within_s:
            answer = await self._room.answer(self.engine.embed(self._probe), READY_TIMEOUT_S)
            self._note(self._probe, answer)
            broken = next((item for item in answer.items if isinstance(item, Problem)), None)
            if broken is not None:
                raise unavailable(f"{self.name}: {broken.message}", broken.code)
        return max(0.0, self._age())

    def _age(self) -> float:
        return time.monotonic() - min(self._proved.values())

    def _note(self, items: Sequence[Item], answer: Answers[Any]) -> None:
        for item, vector in zip(items, answer.items, strict=True):
            if not isinstance(vector, Problem):
                self._proved[type(item)] = time.monotonic()
            elif vector.code == "non_finite":
                self._proved[type(item)] = _NEVER


class Backends:
    """All models of this server by their names and aliases."""

    def __init__(self, models: dict[str, Backend], aliases: dict[str, str]) -> None:
        self.models, self.aliases = models, aliases

    def named(self, name: str | None) -> Backend:
        """The model, or the first where none is named; raises Refusal (404)."""
        if name is None:
            return next(iter(self.models.values()))
        found = self.models.get(self.aliases.get(name, name))
        if found is None:
            known = ", ".join([*self.models, *self.aliases])
            raise Refusal(
                f"the model {name!r} does not exist here; this server has {known}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return found


def probe_image() -> bytes:
    """A small PNG that any image tower must have a vector for."""
    sink = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(sink, "PNG")
    return sink.getvalue()
