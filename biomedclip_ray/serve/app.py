"""Builds the application: the one builder behind `serve.run`, `serve deploy cluster/serve.yaml` and KubeRay's RayService.

    browser, client -> proxy -> Ingress (reads, checks, counts) -> Engine (model + index, batched)

Overload meets two doors. The ingress counts items (texts and pictures) and answers 429 in OpenAI's shape; before it, the
proxy counts requests and answers 429 by Ray's BackpressureConfig (its default would be 503). Both say Retry-After.
A change of model starts the new Engine beside the old one (max_surge_percent), since loading in place would make
everybody wait.
"""

import hashlib
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import FastAPI
from pydantic import Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from biomedclip_ray.config import Serve
from biomedclip_ray.serve.answers import Classified, Embedded, Facts, Found, Problem
from biomedclip_ray.serve.ingress import create_app
from biomedclip_ray.serve.inputs import Item, Refusal
from biomedclip_ray.serve.limits import RETRY_AFTER_S
from biomedclip_ray.serve.replica import Engine

T = TypeVar("T")

INGRESS_CPUS = 0.25
CHEAP_REQUESTS = 64
"""Requests an ingress takes besides those that wait for the model: page, health, refusals."""

START_TRIES = 2
"""A wrong URI does not get right by trying it twenty times, which is Serve's default."""


class Arguments(Serve):
    """What `args` of a Serve config file holds: two URIs, and anything of the `serve` section of the configuration."""

    bundle: str = Field(min_length=1)
    """URI of a bundle folder."""
    index: str = Field(min_length=1)
    """URI of an index (index.lance) that was embedded with this very bundle."""

    @property
    def fingerprint(self) -> str:
        """12 hex digits of all arguments: /v1/models shows it, so deploy knows whether there is anything to change."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    @property
    def cpus(self) -> float:
        """Logical CPUs of all replicas at their least number."""
        return (
            self.resources.ingress_replicas * INGRESS_CPUS + self.resources.replicas * self.resources.cpus_per_replica
        )


# Not `from __future__ import annotations` in this file: Serve looks at the annotation to turn `args` into Arguments.
def build(args: Arguments) -> Application:
    """Arguments -> application. Raises pydantic's ValidationError (by Serve) for unknown or missing keys."""
    return application(args, {}, {})


def application(args: Arguments, engines: dict[str, Any], ingresses: dict[str, Any]) -> Application:
    """The same, with options that say on which nodes replicas run."""
    resources = args.resources
    scaling: dict[str, Any] = {"num_replicas": resources.replicas}
    if resources.max_replicas > resources.replicas:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=resources.replicas,
                max_replicas=resources.max_replicas,
                target_ongoing_requests=2 * resources.max_batch,
            )
        }
    engine = serve.deployment(
        Engine,
        name="Engine",
        max_ongoing_requests=4 * resources.max_batch,  # one batch computes, the next are complete when it is done
        max_surge_percent=100,
        max_constructor_retry_count=START_TRIES,
        ray_actor_options={
            "num_cpus": resources.cpus_per_replica,
            "num_gpus": resources.gpus_per_replica,
            **engines,
        },
        **scaling,
    )
    ingress = serve.deployment(
        Ingress,
        name="Ingress",
        num_replicas=resources.ingress_replicas,
        max_ongoing_requests=resources.max_queued + CHEAP_REQUESTS,
        max_queued_requests=resources.max_queued,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
        max_surge_percent=100,
        max_constructor_retry_count=START_TRIES,
        ray_actor_options={"num_cpus": INGRESS_CPUS, **ingresses},
    )
    return ingress.bind(engine.bind(args.bundle, args.index, resources), args)


@serve.ingress()
class Ingress:
    """The ASGI application in a replica."""

    def __init__(self, engine: DeploymentHandle, args: Arguments) -> None:
        self._engine, self._args = engine, args

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(RemoteEngine(self._engine), self._args, self._args.fingerprint)


class RemoteEngine:
    """`ingress.Engine` by a handle; what Ray raises when nobody can answer becomes 429 or 503."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def facts(self) -> Facts:
        return await _answered(self._handle.facts.remote())

    async def embed(self, items: list[Item]) -> Embedded:
        return await _answered(self._handle.embed.remote(items))

    async def search(self, query: Item, k: int, by: str, filters: dict[str, Any]) -> Found | Problem:
        return await _answered(self._handle.search.remote(query, k, by, filters))

    async def classify(self, items: list[Item], labels: list[str], templates: list[str]) -> Classified:
        return await _answered(self._handle.classify.remote(items, labels, templates))


async def _answered(response: Awaitable[T]) -> T:
    try:
        return await response
    except BackPressureError as error:
        raise Refusal("busy; try again shortly", status=429, code="overloaded", retry_after=RETRY_AFTER_S) from error
    except (RayActorError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
        raise Refusal(
            "the model's process went away and is being replaced; try again shortly",
            status=503,
            code="unavailable",
            retry_after=RETRY_AFTER_S,
        ) from error
