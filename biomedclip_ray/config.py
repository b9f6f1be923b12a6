"""The typed configuration of the whole workflow: one frozen pydantic tree, read from YAML plus dotted overrides.

A key that does not exist is refused with the nearest valid name, so that a typing error costs a second and not a night.
Everything that decides *how fast* a stage runs stands in a `resources` subtree and stays outside the fingerprint
(`product.py`); everything else decides *what* the rows are. Speed can be tuned without computing anything anew.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from yaml import YAMLError

STAGES = ("catalog", "ingest", "preprocess", "curate", "train", "evaluate", "embed", "deploy")

COMMERCIAL = ("CC0", "CC BY", "CC BY-SA", "CC BY-ND")
NON_COMMERCIAL = ("CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND")
LICENSES = (*COMMERCIAL, *NON_COMMERCIAL, "TDM", "unknown")

Percent = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key and the fix (exit code 2)."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


class PartResources(Section):
    """How fast a stage over parts runs; never changes a row."""

    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs of one task."""
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of one task; only embed uses them."""
    concurrency: Positive | None = None
    """Tasks at once at most; null lets Ray Data use what the cluster has."""
    no_progress_timeout_s: Positive = 600
    """Seconds without a finished block after which the run stops and names the operator (Ray's own limit is 1800)."""


class SourceResources(Section):
    threads: Positive = 16
    """Objects fetched at once inside a task: a small object costs a round trip, not a core."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Tries after the first for 5xx, SlowDown, time-outs, and a 403 on a key that the inventory names."""
    deadline_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds one object may take, retries included; a read that never ends becomes a ledger row."""
    max_connections: Positive = 64
    """Connections kept open per process."""


class SourceSelect(Section):
    """Which article versions are fetched. The newest version is chosen first and then judged."""

    licenses: tuple[str, ...] | Literal["commercial", "non_commercial", "all"] = "commercial"
    """Allow-list of licence codes (null in the metadata counts as "unknown"), or the name of a preset."""
    retracted: bool = False
    """Keep retracted articles."""
    manuscripts: bool = False
    """Keep author manuscripts (licence TDM: text mining only)."""
    historical_ocr: bool = False
    """Keep scanned articles whose text is OCR."""
    articles: Positive | None = None
    """Only this many articles, those with the smallest hash of their PMCID: a fair sample that another run repeats."""
    percent: Percent = 100.0
    """Only this share of all articles, by the same hash."""
    pmcids: str | None = None
    """URI of a text file with one PMCID a line: nothing else is looked at."""

    @field_validator("licenses")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            for code in value:
                if code not in LICENSES:
                    raise ValueError(f"{code!r} is no licence code; known: {', '.join(LICENSES)}")
        return value

    def allowed(self) -> frozenset[str]:
        """The licence codes that pass."""
        presets = {"commercial": COMMERCIAL, "non_commercial": (*COMMERCIAL, *NON_COMMERCIAL), "all": LICENSES}
        return frozenset(presets[self.licenses] if isinstance(self.licenses, str) else self.licenses)


class Source(Section):
    uri: str = "s3://pmc-oa-opendata"
    """A bucket or folder in the layout of the PMC Cloud Service; or a folder of legacy oa_package tarballs, known by the
    oa_file_list.csv in it (packages lie where the list says, with or without the leading oa_package/)."""
    inventory: str = "newest"
    """Date of the inventory ("2026-11-20T01-00Z") or "newest", resolved once per root."""
    select: SourceSelect = SourceSelect()
    articles_per_part: Positive = 450
    """Articles in one part, the unit of work, retry and resume: minutes of work, a few hundred MB of pictures."""
    resources: SourceResources = SourceResources()


class StageSection(Section):
    transient_limit: Share = 0.001
    """Share of units that may be lost to network or disk; above it the stage is unfinished (exit 3) and can be rerun."""
    resources: PartResources = PartResources()


class Catalog(StageSection):
    pass


class Ingest(StageSection):
    pass


class PreprocessSelect(Section):
    text: tuple[str, ...] = ()
    """Patterns (regular expressions, case ignored), one of which caption or mentions must match; judged before a byte
    of media is fetched."""


class Preprocess(StageSection):
    select: PreprocessSelect = PreprocessSelect()
    short_side: Positive = 384
    """Pixels of the stored picture's short side; a smaller original is never enlarged."""
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    """JPEG quality of the stored picture."""
    min_side: Positive = 32
    """Pixels; smaller pictures are icons and equations."""
    max_pixels: Positive = 178_956_970
    """Pixels an original may claim before it is decoded (Pillow's own decompression-bomb limit)."""
    max_aspect: Annotated[float, Field(gt=1)] = 12.0
    """Long side / short side; beyond it lie rules and banners."""
    panels: bool = False
    """Also cut compound figures into panels (a derivative work: never done under a no-derivatives licence)."""


class Own(StageSection):
    """Image-caption pairs of a hospital or laboratory, taken in at curate like PMC's."""

    uri: str | None = None
    """A folder (or one file) of Parquet, WebDataset shards or CSV with pictures beside it; `corpus/own_files.py` names the
    columns. null: PubMed Central only."""
    alone: bool = False
    """Train on these pairs only; PubMed Central is not read."""
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")] = "own"
    """What ids begin with, and what stands where PMC's pairs name their journal."""
    license: str = "unknown"
    """Licence of pairs that name none; curate.select.licenses judges it like any other."""
    pairs_per_part: Positive = 2000
    """Rows in one part, the unit of work, retry and resume (a WebDataset shard is a part of its own)."""

    @field_validator("license")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in LICENSES:
            raise ValueError(f"{value!r} is no licence code; known: {', '.join(LICENSES)}")
        return value

    @model_validator(mode="after")
    def _has_pairs(self) -> Own:
        if self.alone and self.uri is None:
            raise ValueError("own.alone=true needs own.uri: the pairs to train on")
        return self


class CurateSelect(Section):
    licenses: tuple[str, ...] | Literal["commercial", "non_commercial", "all"] = "all"
    """Licences trained on; source.select says which are fetched."""
    kinds: tuple[str, ...] | None = None
    """Figure kinds trained on; null: all."""
    panels: bool = True
    """Train on panels too, where preprocess cut them."""
    min_text_chars: Annotated[int, Field(ge=0)] = 5
    """Characters; a shorter text tells nothing about its picture."""


class Splits(Section):
    validation: Share = 0.05
    """Share of articles, by hash of the PMCID."""
    test: Share = 0.05
    """Share of articles, by hash of the PMCID."""

    @model_validator(mode="after")
    def _sum(self) -> Splits:
        if self.validation + self.test >= 1:
            raise ValueError("curate.splits: validation + test must leave something to train on")
        return self


class Curate(Section):
    select: CurateSelect = CurateSelect()
    splits: Splits = Splits()
    max_group: Positive = 1000
    """Pairs; a larger component of equal pictures is blank plots chained, and is dropped."""
    near_bits: Annotated[int, Field(ge=0, le=8)] | None = 4
    """Bits of 64 in which the perceptual hashes of two copies of a picture may differ (recompressed or shrunk to a third: 97% of
    figures at 4); such pairs are then compared pixel by pixel. null: equal bytes only."""
    balance: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Figure kind -> share (up to 1) or number (above 1) of its pairs that is kept, drawn by hash; other kinds stay whole."""


class Model(Section):
    config: str = "biomedclip_vit_b16"
    """Name of a file in biomedclip_ray/clip/configs or URI of an open_clip model config (JSON)."""
    init: Literal["pretrained", "random"] = "pretrained"
    """"pretrained": weights that the model config names must be reached, or the run stops; "random": none is asked for."""
    tokenizer: str = "fit"
    """"fit": a WordPiece fitted on the training captions; else a Hugging Face tokenizer's name or folder."""
    vocab_size: Positive = 4096
    """Tokens of a fitted tokenizer."""
    bundle: str | None = None
    """URI of a CLIP to start from instead of the model config (local-dir:PATH, hf-hub:NAME, or one of our bundles)."""


class TrainResources(Section):
    workers: Positive | tuple[Positive, Positive] = 1
    """Training workers (processes in the gradient's group); [min, max]: as many as the cluster has, which may change."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs of a training worker; leave some of the cluster's CPUs to the feed."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of a training worker."""
    threads: Positive | None = None
    """Threads of a training worker's arithmetic on CPUs; null: its CPUs, at least one."""
    forward_pairs: Positive | None = None
    """Pairs in one forward pass; a worker with more caches features (one more forward pass). null: all that it has."""
    grad_checkpointing: bool = False
    """Keep no activations inside the towers, compute them again: less memory, a third more time."""
    feed_cpus: Annotated[float, Field(gt=0)] = 0.5
    """Logical CPUs of one task that decodes and tokenizes."""
    feed_concurrency: Positive = 2
    """Such tasks at once at most; checked against the cluster before anything starts."""
    prefetch_batches: Annotated[int, Field(ge=0)] = 2
    """Batches a worker holds ready."""
    validation_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of the task that measures a checkpoint."""
    max_failures: int = 3
    """Worker losses after which the run ends; each resumes from the last checkpoint."""
    no_progress_timeout_s: Positive = 600
    """Seconds without a block moving before the run stops and names the operator; longer than any pause of the workers."""

    @property
    def min_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _range(self) -> TrainResources:
        if self.min_workers > self.max_workers:
            raise ValueError(f"train.resources.workers={[self.min_workers, self.max_workers]} must be [min, max]")
        return self


class Train(Section):
    epochs: Annotated[float, Field(ge=0)] = 32
    """Passes over the train split; may be a fraction. 0: nothing is trained, the CLIP of model.bundle is taken as it is."""
    batch: Positive = 4096
    """Pairs in one optimiser step over all workers; divided by `micro_batches` and by the workers."""
    micro_batches: Positive = 8
    """Micro-blocks a global batch is cut into: any number of workers that divides it sees the same batches."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)] = 2000
    """Optimiser steps of linear warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    """AdamW; not on norms, biases and the logit scale."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """AdamW."""
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm; null: no limit."""
    loss: Literal["infonce", "sigmoid"] = "infonce"
    """"infonce": softmax over the global batch, as CLIP; "sigmoid": SigLIP's, for a model config with init_logit_bias."""
    lock: tuple[Literal["image", "text"], ...] = ()
    """Towers that stay as they are."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of the forward pass (autocast); weights and optimiser stay fp32."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Share of the picture's area that a random resized crop keeps; (1, 1): none."""
    window: Positive = 8192
    """Pairs shuffled together; row groups of a window are drawn from the whole epoch."""
    seed: int = 0
    checkpoint_steps: Positive = 500
    """Optimiser steps between checkpoints."""
    keep_checkpoints: Positive = 2
    """Checkpoints kept: the newest, and the best by validation recall where validation_pairs asks for it."""
    validation_pairs: Annotated[int, Field(ge=0)] = 0
    """Pairs of the validation split that each checkpoint is measured on, apart from the training workers; the best
    becomes the bundle. 0: the last checkpoint does."""
    log_steps: Positive = 10
    """Optimiser steps between lines of metrics.jsonl."""
    log_pairs: bool = False
    """Write pairs/*.jsonl with {step, attempt, positions} per rank: who trained on what, to check the order."""
    resources: TrainResources = TrainResources()

    @model_validator(mode="after")
    def _divisible(self) -> Train:
        if self.batch % self.micro_batches:
            raise ValueError(f"train.batch={self.batch} must be a multiple of train.micro_batches={self.micro_batches}")
        workers = self.resources.workers
        if isinstance(workers, int) and self.micro_batches % workers:
            raise ValueError(
                f"train.micro_batches={self.micro_batches} must be a multiple of train.resources.workers={workers}"
            )
        if self.micro_batches < self.resources.max_workers:
            raise ValueError(
                f"train.micro_batches={self.micro_batches} must be at least the most of "
                f"train.resources.workers={workers}: every worker takes a block of each step"
            )
        return self


class Evaluate(Section):
    split: Literal["test", "validation"] = "test"
    bootstraps: Positive = 1000
    """Resamples of the pool behind each 95% interval."""
    sets: tuple[str, ...] = ()
    """URIs of labelled sets (a folder with dataset.json and Parquet files): zero-shot and linear probe, or VQA."""
    seed: int = 0
    resources: PartResources = PartResources()


class Embed(StageSection):
    splits: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")
    """Splits whose kept pairs enter the index."""
    batch: Positive = 64
    """Pairs in one forward pass."""
    thumbnail: Positive = 128
    """Pixels of the long side of the picture that search shows."""
    ann_rows: Positive = 100_000
    """Rows from which an approximate index is built; below it search is exact."""


class ServeResources(Section):
    host: str = "127.0.0.1"
    """Address the HTTP server listens on; "0.0.0.0" lets other machines in (there is no login: put a proxy before it)."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    replicas: Positive = 1
    """Encoder replicas at least."""
    max_replicas: Positive = 1
    """Encoder replicas at most; above `replicas` Serve scales with the load."""
    cpus_per_replica: Annotated[float, Field(gt=0)] = 0.5
    """Logical CPUs of an encoder replica; twice what all take must fit while one model replaces another."""
    gpus_per_replica: Annotated[float, Field(ge=0)] = 0.0
    ingress_replicas: Positive = 1
    """Processes that read requests and check them; each takes a quarter of a logical CPU."""
    max_batch: Positive = 32
    """Items the encoder takes together."""
    batch_wait_ms: Annotated[float, Field(ge=0)] = 5.0
    """Milliseconds an item waits for company."""
    max_queued: Positive = 1024
    """Texts and pictures waiting in one ingress before the next request is told to come back later (429 with
    Retry-After); the longest wait is this number over the encoder's items per second."""
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds after which a request without an answer ends with 503."""
    ready_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds deploy waits until the model and the index are loaded."""


class Serve(Section):
    name: str = "biomedclip"
    """Name of the Serve application."""
    model_id: str = "biomedclip"
    """The model's name in /v1/models and in every answer."""
    max_items: Positive = 256
    """Inputs in one request; more: 400."""
    max_body_bytes: Positive = 32 * 1024 * 1024
    """Bytes of one request; more: 413."""
    max_pixels: Positive = 50_000_000
    """Pixels of one picture, read from its header before it is decoded (150 MB in memory); more: 400."""
    max_results: Positive = 100
    """Results of one search; more: 400."""
    dimensions: tuple[Positive, ...] = ()
    """Shorter vectors that may be asked for (cut, then unit length again). Empty: a model that was not trained for it
    loses recall when cut, so whoever asks is told (400)."""
    resources: ServeResources = ServeResources()


class Config(Section):
    """The whole workflow. `root` is where every product lies: a folder, `s3://...`, or any pyarrow/fsspec URI."""

    root: str
    source: Source = Source()
    catalog: Catalog = Catalog()
    ingest: Ingest = Ingest()
    preprocess: Preprocess = Preprocess()
    own: Own = Own()
    curate: Curate = Curate()
    model: Model = Model()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    embed: Embed = Embed()
    serve: Serve = Serve()

    @model_validator(mode="after")
    def _something_to_export(self) -> Config:
        if self.train.epochs == 0 and self.model.bundle is None:
            raise ValueError("train.epochs=0 trains nothing; set model.bundle to the CLIP that is to be taken as it is")
        return self


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file and dotted overrides (`train.lr=3e-4`) into a checked `Config`.

    Raises:
        ConfigError: no such file, no YAML, an unknown key (with the nearest valid name), or a value that does not fit.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"config file {path} does not exist" + (f"; beside it: {', '.join(near)}" if near else ""))
    for item in overrides:
        if "=" not in item:
            raise ConfigError(f"override {item!r} is not of the form key=value, for example train.lr=3e-4")
    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise ConfigError(f"{path}: expected a mapping with the keys {', '.join(Config.model_fields)}")
        tree = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        raw = OmegaConf.to_container(tree, resolve=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}".splitlines()[0]) from error
    assert isinstance(raw, dict)
    return parse({str(key): value for key, value in raw.items()}, str(path))


def parse(raw: dict[str, Any], origin: str) -> Config:
    """Check a plain mapping; `origin` stands before every message. Raises ConfigError."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{origin}: {_explain(item)}" for item in error.errors())) from error


def _explain(error: Any) -> str:
    """One pydantic error as a line that names the key and, for an unknown one, the nearest valid name."""
    location = [str(step) for step in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        valid = list(_section(location[:-1]).model_fields)
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
        prefix = "".join(f"{step}." for step in location[:-1])
        hint = f"did you mean {prefix}{near[0]}?" if near else f"valid here: {', '.join(valid)}"
        return f"unknown key {key}; {hint}"
    if error["type"] == "missing":
        return f"{key} is missing; set it in the file or on the command line ({key}=...)"
    message = error["msg"].removeprefix("Value error, ")
    return message if not key or message.startswith(key) else f"{key}={error['input']!r}: {message}"


def _section(location: list[str]) -> type[BaseModel]:
    """The section class at a path of keys."""
    model: type[BaseModel] = Config
    for step in location:
        annotation = model.model_fields[step].annotation
        choices = get_args(annotation) if hasattr(annotation, "__args__") else (annotation,)
        model = next(c for c in choices if isinstance(c, type) and issubclass(c, BaseModel))
    return model
