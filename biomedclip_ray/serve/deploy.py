"""The stage `deploy`: bring the application up on the cluster and wait until it answers.

It leaves no product; what it would change is asked of the running application, whose /ready tells the fingerprint of
the arguments that the engine which answers was started with. The same bundle, index and settings: skipped. Another
bundle: the new one is loaded beside the old one, which serves until then; one that does not come up is taken back, and
the old one serves on with its own settings. It is deployed anew for that: after an update that failed Serve starts no
replica of either version (findings/ray_serve_failed_update_no_restart.sh).
"""

from __future__ import annotations

import base64
import logging
import os
import socket
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx
from ray import serve
from ray.exceptions import RayError
from ray.serve import RunTarget
from ray.serve.exceptions import RayServeException

from biomedclip_ray.config import Config, ConfigError, ServeResources
from biomedclip_ray.run.capacity import Capacity, known
from biomedclip_ray.run.interrupt import in_thread
from biomedclip_ray.run.nodes import wait_for_nodes
from biomedclip_ray.run.placement import Placement, place
from biomedclip_ray.search.index import Index
from biomedclip_ray.search.table import TABLE
from biomedclip_ray.serve.access import is_loopback
from biomedclip_ray.serve.app import INGRESS_CPUS, Arguments, application
from biomedclip_ray.store.product import Product, StageError

log = logging.getLogger(__name__)

PROBE_S = 5.0
KEY = "BIOMEDCLIP_API_KEY"
"""Environment variable with the key that `ask` sends, where the server wants one."""


class DeployError(StageError):
    """The application did not come up; the message holds what Serve says."""


@dataclass(frozen=True)
class Deployed:
    url: str
    state: Literal["ran", "skipped"]
    name: str
    """Name of the Serve application."""


def deploy(config: Config, bundle: Product, index: Product) -> Deployed:
    """Serve a bundle and its index on the connected Ray cluster.

    Raises:
        ConfigError: the port is taken, the cluster has too few CPUs or GPUs, or other machines could ask without a key.
        DeployError: the application failed, or was not ready within serve.resources.ready_timeout_s; what served before
            serves on.
    """
    args = arguments(config, bundle, index)
    url = address(args.resources)
    if running(url) == args.fingerprint and not _update_failed(args.name):
        return Deployed(url, "skipped", args.name)
    capacity = known()
    check(args, capacity)
    engine, ingress = placed(args.resources, capacity)
    wanted = [(engine, args.engines), (ingress, args.resources.ingress_replicas)]
    wait_for_nodes("deploy", capacity, wanted, args.resources.wait_for_nodes_s)
    serve.start(http_options={"host": args.resources.host, "port": args.resources.port})
    engines, before = _serving(args)
    options = (engine.only, ingress.only)
    _start(args, *options)
    try:
        _wait(url, args)
    except DeployError as error:
        if not engines:
            serve.delete(args.name, _blocking=False)
            raise
        if before is None:
            raise DeployError(
                f"{error}; what was served before is served on as far as it works, but did not say within "
                f"{args.resources.timeout_s:g} s how it was started: deploy again what should serve"
            ) from error
        _start(before, *options)
        raise DeployError(f"{error}; what was served before is served on") from error
    return Deployed(url, "ran", args.name)


def _start(args: Arguments, engine: dict[str, Any], ingress: dict[str, Any]) -> None:
    """Begin to replace what runs; `engine` and `ingress` are options that hold each to its nodes."""
    logs = {"encoding": "JSON", "enable_access_log": False}  # the ingress writes a line of its own for each request
    target = RunTarget(application(args, engine, ingress), name=args.name, route_prefix="/", logging_config=logs)
    serve.run_many([target], wait_for_applications_running=False)


def _update_failed(name: str) -> bool:
    """Whether a later deploy failed and was left so: if what answers dies, Serve starts nothing in its place."""
    application = serve.status().applications.get(name)
    return application is not None and application.status == "DEPLOY_FAILED"


def _serving(args: Arguments) -> tuple[int, Arguments | None]:
    """How many engines the application of this name has, and what it was started with, where one says it in time."""
    application = serve.status().applications.get(args.name)
    engine = application.deployments.get("Engine") if application else None
    engines = engine.replica_states.get("RUNNING", 0) if engine else 0
    if not engines:
        return 0, None
    handle = serve.get_deployment_handle("Engine", app_name=args.name)
    try:  # in a thread: Ray refuses to wait where a loop runs, as in a notebook
        before: Arguments = in_thread(lambda: handle.arguments.remote().result(timeout_s=args.resources.timeout_s))
    except (RayError, RayServeException, TimeoutError) as error:
        log.warning("the application %s does not say how it was started: %s", args.name, error)
        return engines, None
    return engines, before


def arguments(config: Config, bundle: Product, index: Product) -> Arguments:
    """What the application is built from."""
    settings = config.serve.model_dump()
    return Arguments(**settings, bundle=bundle.place.at("bundle").uri, index=index.place.at(TABLE).uri)


def address(resources: ServeResources) -> str:
    """Where this machine reaches the application."""
    host = {"0.0.0.0": "127.0.0.1", "localhost": "127.0.0.1", "::": "::1"}.get(resources.host, resources.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{resources.port}"


def running(url: str) -> str | None:
    """The fingerprint of the ready application at this address; None if there is none, or one that does not work."""
    try:
        answer = httpx.get(f"{url}/ready", timeout=PROBE_S, trust_env=False)  # this machine is behind no proxy
        content = answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return None
    return content.get("application") if isinstance(content, dict) else None


def placed(resources: ServeResources, capacity: Capacity) -> tuple[Placement, Placement]:
    """Where the encoder's replicas run, and where the processes that read requests: beside them."""
    engine = place(capacity, resources.cpus_per_replica, resources.gpus_per_replica)
    return engine, place(capacity, INGRESS_CPUS, beside="gpus" if resources.gpus_per_replica else "cpus")


def check(args: Arguments, capacity: Capacity) -> None:
    """Raises ConfigError for a server open to strangers by oversight, and for what would make Serve wait for ever: a
    taken port, CPUs or GPUs that can never come.
    """
    resources = args.resources
    if not (is_loopback(resources.host) or args.access.keys or args.access.open):
        raise ConfigError(
            f"serve.resources.host={resources.host} lets other machines ask, and no key is named: set "
            "serve.access.keys "
            "(python -m biomedclip_ray.serve.access NAME makes one), or serve.access.open=true behind a gateway"
        )
    for kind, key, needed in (
        ("CPU", "cpus_per_replica", args.cpus),
        ("GPU", "gpus_per_replica", args.engines * resources.gpus_per_replica),
    ):
        if capacity.sized and needed > capacity.total(kind):
            raise ConfigError(
                f"serve.resources.{key}: the application needs {needed:g} {kind}s, {capacity.found} has "
                f"{capacity.total(kind):g}"
            )
    if not capacity.fits(resources.cpus_per_replica, resources.gpus_per_replica):
        raise ConfigError(
            f"serve.resources.cpus_per_replica={resources.cpus_per_replica:g} with gpus_per_replica="
            f"{resources.gpus_per_replica:g}: no node of {capacity.found} has as many; lower one of them"
        )
    if serve.status().proxies:  # Serve is up and holds its port
        return
    with socket.socket(socket.AF_INET6 if ":" in resources.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((resources.host, resources.port))
        except OSError as error:
            raise ConfigError(
                f"serve.resources.port={resources.port} on {resources.host} cannot be used ({error.strerror}); free "
                "it or "
                f"choose another, for example serve.resources.port={resources.port + 1}"
            ) from error


def _wait(url: str, args: Arguments) -> None:
    """Until the new application answers; raises DeployError."""
    deadline = time.monotonic() + args.resources.ready_timeout_s
    while time.monotonic() < deadline:
        status = serve.status().applications[args.name]
        if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            messages = [d.message for d in status.deployments.values() if d.message] or [status.message]
            reasons = "; ".join(_last_line(message) for message in messages)
            raise DeployError(f"the application {args.name} did not start: {reasons}")
        if status.status == "RUNNING" and running(url) == args.fingerprint:
            return
        time.sleep(0.2)
    raise DeployError(
        f"{url} was not ready within {args.resources.ready_timeout_s:g} s (serve.resources.ready_timeout_s); "
        "application "
        f"{args.name}: {status.status} {status.message}. If Serve was started on this cluster with another port "
        "before, "
        "end it first (serve shutdown)"
    )


def _last_line(message: str) -> str:
    """Of a traceback, the line that says what happened."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "Serve gives no reason"


def ask(url: str, index: Product) -> Iterator[str]:
    """Ask the live endpoint about figures of its own index, as anybody would over HTTP; yields lines to print.

    Captions of three kinds of figure (of articles that training did not see, where the index holds such) are searched
    for, then an image; an image is classified, and a text is embedded. Raises httpx.HTTPError.
    """
    key = os.environ.get(KEY)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, timeout=60, trust_env=False, headers=headers) as client:
        if client.get("/v1/models").status_code == 401:
            yield f"the server wants a key: set {KEY} to see it asked"
            return

        def post(path: str, body: dict[str, Any]) -> Any:
            return client.post(path, json=body).raise_for_status().json()

        samples = _samples(Index.open(index.place.at(TABLE).uri))
        for row in samples:
            yield from _shown(f'"{_short(row["caption"])}"', row, post("/v1/search", {"query": row["caption"], "k": 3}))
        row = samples[0]
        image = "data:image/jpeg;base64," + base64.b64encode(row["thumbnail"]).decode()
        yield from _shown(f"the image of {row['pair_id']}", row, post("/v1/search", {"query": image, "k": 3}))
        captions = [_short(other["caption"]) for other in samples]
        if len(set(captions)) == len(captions) > 1:
            body = {"input": image, "labels": captions, "templates": ["{}"]}
            (guess,) = post("/v1/classify", body)["data"]
            verdict = "right" if guess["label"] == captions[0] else f'wrong, it is "{captions[0]}"'
            yield f"which of the {len(captions)} captions above belongs to that image? ->"
            yield f'    {guess["probabilities"][guess["label"]]:.3f} "{guess["label"]}" ({verdict})'
        answer = post("/v1/embeddings", {"input": row["caption"]})
        tokens, vector = answer["usage"]["prompt_tokens"], answer["data"][0]["embedding"]
        yield f"its caption embedded: {tokens} tokens -> {len(vector)} numbers, {vector[0]:.4f}, {vector[1]:.4f}, ..."


def _samples(index: Index) -> list[dict[str, Any]]:
    """A figure of each of three kinds, held-out ones first."""
    columns = ["pair_id", "caption", "figure_kind", "thumbnail"]
    unseen = index.dataset.to_table(columns=columns, filter="split = 'test'", limit=200).to_pylist()
    rows = unseen or index.dataset.to_table(columns=columns, limit=200).to_pylist()
    of_kind = {row["figure_kind"]: row for row in reversed(rows)}
    return list(of_kind.values())[-3:]


def _shown(question: str, row: dict[str, Any], answer: dict[str, Any]) -> Iterator[str]:
    yield f"{question} ->"
    for hit in answer["data"]:
        itself = " (the very figure)" if hit["pair_id"] == row["pair_id"] else ""
        yield f"    {hit['score']:.3f} {hit['pair_id']}{itself}: {_short(hit['caption'])} [{hit['license']}]"


def _short(text: str, most: int = 80) -> str:
    return textwrap.shorten(text, most, placeholder="...") or text[:most]
