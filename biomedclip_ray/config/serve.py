"""The section of the configuration for the server: what it takes, who may ask, and what it may use."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from biomedclip_ray.config.section import Positive, Precision, Section

Seconds = Annotated[float, Field(gt=0)]
Scope = Literal["embed", "search", "admin"]


class ServeResources(Section):
    host: str = "127.0.0.1"
    """Address the HTTP server listens on; "0.0.0.0" lets other machines in (then name serve.access.keys)."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the HTTP server on every node."""
    replicas: Positive = 1
    """Encoder replicas at least."""
    max_replicas: Positive = 1
    """Encoder replicas at most; above `replicas` Serve scales with the load."""
    cpus_per_replica: Annotated[float, Field(gt=0)] = 0.5
    """Logical CPUs of an encoder replica; twice what all take must fit while one model replaces another."""
    gpus_per_replica: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of one replica; 0: it runs on CPUs."""
    threads: Positive | None = None
    """Threads that a replica's model computes with; none: the cores of its node. What it asks of Ray
    does not set them.
    """
    ingress_replicas: Positive = 1
    """Processes that read requests and check them; each takes a quarter of a logical CPU."""
    max_batch: Positive = 32
    """Items the encoder takes together."""
    batch_wait_ms: Annotated[float, Field(ge=0)] = 5.0
    """Milliseconds an image waits for others of its request that are still being decoded."""
    max_queued: Positive = 1024
    """Texts and images waiting in one ingress before the next request is told to come back later (429 with
    Retry-After); the longest wait is this number over the encoder's items per second."""
    timeout_s: Seconds = 60.0
    """Seconds after which a request without an answer ends with 503."""
    body_timeout_s: Seconds = 30.0
    """Seconds in which a request's body must have come; a slower client gets 408."""
    wait_for_nodes_s: Positive = 86_400
    """Seconds that deploy waits for nodes that the replicas fit on."""
    ready_timeout_s: Seconds = 300.0
    """Seconds deploy then waits until the model and the index are loaded."""
    ready_within_s: Seconds = 10.0
    """/ready is 200 where the model gave finite vectors within so many seconds; else it is asked for some, and 503
    without.
    """
    silence_s: Seconds = 0.5
    """Seconds without a sign of life from an encoder replica after which its node is asked; where none is left whose
    node answers, requests get 503 at once.
    """
    hung_s: Seconds = 5.0
    """Seconds without a sign of life after which a replica counts as lost although its node answers: it hangs."""


class ApiKey(Section):
    name: str = Field(min_length=1, max_length=64, pattern=r"^[\w.-]+$")
    """Whose it is; stands in logs and metrics."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of the key, never the key: `python -m biomedclip_ray.serve.access NAME` makes both."""
    scopes: tuple[Scope, ...] = ("embed", "search")
    """What it opens: embed (embeddings, classify, similarity), search (search, MCP), admin (metrics)."""
    requests_per_minute: Positive | None = None
    """Requests a minute in each ingress process; none: as many as there is room for."""
    items_per_minute: Positive | None = None
    """Texts and images a minute in each ingress process; none: as many as there is room for."""


class Access(Section):
    keys: tuple[ApiKey, ...] = ()
    """API keys, of which one must come as `Authorization: Bearer KEY`. None: only this machine may ask,
    unless `open`.
    """
    open: bool = False
    """Let other machines ask without a key: for a server behind a gateway that asks who comes."""
    hosts: tuple[str, ...] = ()
    """Names that a request's Host may have ("*.example.org" too); others get 400. None: loopback's names on a server
    that listens there (a page elsewhere cannot then ask it by a name of its own), any name on others.
    """
    origins: tuple[str, ...] = ()
    """Origins whose pages may ask (CORS), as "https://lab.example.org"; none: only the server's own page."""


class ServedModel(Section):
    id: str = Field(min_length=1)
    """Its name in `model` of requests and answers."""
    bundle: str = Field(min_length=1)
    """URI of a bundle folder."""
    index: str = Field(min_length=1)
    """URI of an index (index.lance) that was embedded with this very bundle."""


class Serve(Section):
    name: str = "biomedclip"
    """Name of the Serve application."""
    model_id: str = "biomedclip"
    """The model's name in /v1/models and in every answer."""
    aliases: dict[str, str] = Field(default={})
    """Other names of models: {"text-embedding-3-small": "biomedclip"} for clients that cannot be told another."""
    more: tuple[ServedModel, ...] = ()
    """Other bundles and their indices, served beside the first, each by replicas of its own."""
    precision: Precision = "float32"
    """In what the towers compute: float32, bfloat16, or auto: bfloat16 where the CPU or GPU has it, a measurement at
    the start finds it faster, and its vectors agree.
    """
    max_items: Positive = 256
    """Inputs in one request; more: 400."""
    max_body_bytes: Positive = 32 * 1024 * 1024
    """Bytes of one request; more: 413."""
    max_depth: Positive = 16
    """Brackets of a JSON body that may be open at once; more: 400."""
    max_pixels: Positive = 50_000_000
    """Pixels of one image, read from its header before it is decoded (150 MB in memory); more: 400."""
    max_results: Positive = 100
    """Results of one search; more: 400."""
    thumbnail_licenses: tuple[str, ...] = ("CC0", "CC BY", "CC BY-SA", "CC BY-NC", "CC BY-NC-SA")
    """Licences whose figures are shown as thumbnails. A thumbnail is a copy, and a smaller one: licences against
    derivatives (ND), for mining alone (TDM) or unknown do not allow it. Figures under others are found all the same,
    with a link in place of the image.
    """
    dimensions: tuple[Positive, ...] = ()
    """Shorter vectors that may be asked for (cut, then unit length again). Empty: a model that was not trained for it
    loses recall when cut, so whoever asks is told (400)."""
    fetch_hosts: tuple[str, ...] = ()
    """Hosts whose https addresses of images are fetched ("images.example.org", "*.example.org"); none: addresses are
    refused.
    """
    fetch_timeout_s: Seconds = 5.0
    """Seconds for one fetched image, redirects included."""
    fetch_max_bytes: Positive = 16 * 1024 * 1024
    """Bytes of one fetched image."""
    access: Access = Access()
    resources: ServeResources = ServeResources()
