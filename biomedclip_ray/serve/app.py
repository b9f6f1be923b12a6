"""Builds the application: the one builder behind `serve.run`, `serve deploy cluster/serve.yaml` and KubeRay's
RayService.

    browser, client -> proxy -> Ingress (reads, checks, counts) -> Engine (model + index, batched)

Overload meets two doors. The ingress counts items (texts and images) and answers 429 in OpenAI's shape; before it, the
proxy counts requests and answers 429 by Ray's BackpressureConfig (its default would be 503). Both say Retry-After.
A change of model starts the new Engine beside the old one (max_surge_percent), since loading in place would make
everybody wait.

A change goes live when it works and not before. The new Engine embeds and searches while it is made, and raises if it
cannot; the new Ingress, with new limits and keys, waits until an engine of its own arguments answers. Where either
fails, Serve leaves the old ones serving.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import Field, model_validator
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.handle import DeploymentHandle

from biomedclip_ray.config import Serve, ServedModel
from biomedclip_ray.run.memory import keeping_freed
from biomedclip_ray.serve import gate
from biomedclip_ray.serve.backend import RemoteEngine
from biomedclip_ray.serve.errors import RETRY_AFTER_S
from biomedclip_ray.serve.ingress import create_app
from biomedclip_ray.serve.replica import Engine

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
    def engines(self) -> int:
        """Replicas of all models at their least number."""
        return len(self.models) * self.resources.replicas

    @property
    def cpus(self) -> float:
        """Logical CPUs of all replicas, those of the ingress too."""
        return self.resources.ingress_replicas * INGRESS_CPUS + self.engines * self.resources.cpus_per_replica

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """Every bundle with its index, the first one first."""
        return (ServedModel(id=self.model_id, bundle=self.bundle, index=self.index), *self.more)

    @model_validator(mode="after")
    def _names(self) -> "Arguments":
        names = [model.id for model in self.models]
        if len({*names, *self.aliases}) < len(names) + len(self.aliases):
            raise ValueError(
                f"serve.more, serve.aliases: a name stands twice among {', '.join([*names, *self.aliases])}"
            )
        for alias, name in self.aliases.items():
            if name not in names:
                raise ValueError(f"serve.aliases.{alias}={name}: no such model; there is {', '.join(names)}")
        return self


# Not `from __future__ import annotations` in this file: Serve would hand over a dict instead of Arguments
# (findings/ray_serve_postponed_annotations.sh).
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
    by_model = {
        model.id: serve.deployment(
            Engine,
            name="Engine" if n == 0 else f"Engine-{n}",
            max_ongoing_requests=4 * resources.max_batch,  # one batch computes, the next are complete when it is done
            max_surge_percent=100,
            max_constructor_retry_count=START_TRIES,
            ray_actor_options={
                "num_cpus": resources.cpus_per_replica,
                "num_gpus": resources.gpus_per_replica,
                "runtime_env": _environment(resources.gpus_per_replica),
                **engines,
            },
            **scaling,
        ).bind(model.bundle, model.index, args, args.fingerprint)
        for n, model in enumerate(args.models)
    }
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
    return ingress.bind(by_model, args)


def _environment(gpus: float) -> dict[str, Any]:
    """The job's runtime environment, of which a deployment that names its own would get no more than the folder, and
    what its memory wants.
    """
    job = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}  # which asking would start
    return job | {"env_vars": keeping_freed(gpus).get("env_vars", {}) | job.get("env_vars", {})}


@serve.ingress()
class Ingress:
    """The ASGI application in a replica."""

    def __init__(self, engines: dict[str, DeploymentHandle], args: Arguments) -> None:
        self._engines, self._args = engines, args

    def __serve_build_asgi_app__(self) -> FastAPI:
        silence_s, hung_s = self._args.resources.silence_s, self._args.resources.hung_s
        engines = {name: RemoteEngine(handle, silence_s, hung_s) for name, handle in self._engines.items()}
        app = create_app(engines, self._args, behind_proxy=True)
        inner = app.router.lifespan_context
        if (beacon := gate.beacon()) is not None:
            app.add_middleware(gate.Told, beacon=beacon)

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with asyncio.timeout(self._args.resources.ready_timeout_s):
                for engine in engines.values():
                    await engine.wait_for(self._args.fingerprint)
            try:
                async with inner(app):
                    yield
            finally:
                if beacon is not None:
                    beacon.close()

        app.router.lifespan_context = lifespan
        return app
