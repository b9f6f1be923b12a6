"""A served model as the ingress knows it: what it asks the engine, how that is reached, and when it last proved that it
works.

All that says what an engine can be asked stands here, but for the answering itself (`replica.py`). Ray is imported
where an engine is asked through it, so that the routes are tested in a process without.
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

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
from biomedclip_ray.serve.errors import Refusal, busy, unavailable
from biomedclip_ray.serve.inputs import Item
from biomedclip_ray.serve.limits import Room
from biomedclip_ray.serve.pulse import Address, Pulse

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger("ray.serve")

T = TypeVar("T")

PROBE_TEXT = "a figure"
READY_TIMEOUT_S = 3.0
ASK_AGAIN_S = 0.2
_NEVER = float("-inf")


class Engine(Protocol):
    """What answers: a model and an index somewhere. Raises Refusal when it cannot be reached or is full."""

    async def facts(self) -> ModelFacts: ...
    async def embed(self, items: list[Item]) -> Embedded: ...
    async def search(self, question: Question) -> Searched | Problem: ...
    async def classify(self, items: list[Item], labels: list[str], templates: list[str]) -> Classified: ...
    async def points(self) -> MapPoints | Problem: ...


class RemoteEngine:
    """`backend.Engine` by a handle; what Ray raises when nobody can answer becomes 429 or 503, and so
    does a dead node.
    """

    def __init__(self, handle: DeploymentHandle, silence_s: float, hung_s: float) -> None:
        self._handle = handle
        self._pulse = Pulse(self._beats_at, silence_s, hung_s)

    async def wait_for(self, application: str) -> None:
        """Until an engine of these arguments answers."""
        while True:
            try:
                facts = await _answered(self._handle.facts.remote())
            except Refusal as refusal:
                log.info("waiting for the engine: %s", refusal.message)
            else:
                if facts.application == application:
                    self._pulse.heard(facts.engine)
                    return
            await asyncio.sleep(ASK_AGAIN_S)

    async def facts(self) -> ModelFacts:
        return await self._heard(self._handle.facts.remote())

    async def embed(self, items: list[Item]) -> Embedded:
        return await self._heard(self._handle.embed.remote(items))

    async def search(self, question: Question) -> Searched | Problem:
        return await self._heard(self._handle.search.remote(question))

    async def classify(self, items: list[Item], labels: list[str], templates: list[str]) -> Classified:
        return await self._heard(self._handle.classify.remote(items, labels, templates))

    async def points(self) -> MapPoints | Problem:
        return await self._heard(self._handle.points.remote())

    async def _heard(self, response: Awaitable[T]) -> T:
        answer = await self._pulse.guard(_answered(response))
        if isinstance(answer, ModelFacts | Answers | Searched | MapPoints):
            self._pulse.heard(answer.engine)
        return answer

    async def _beats_at(self) -> Address | None:
        facts: ModelFacts = await _answered(self._handle.facts.remote())
        return facts.engine


async def _answered(response: Awaitable[T]) -> T:
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

    try:
        return await response
    except BackPressureError as error:
        raise busy("busy; try again shortly") from error
    except (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
        raise unavailable("the model's process went away and is being replaced; try again shortly") from error


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
