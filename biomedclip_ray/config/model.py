"""The sections of the model: its towers, its training, what is measured, embedded and served."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from biomedclip_ray.config.section import (
    KnownKinds,
    Later,
    PartResources,
    Positive,
    Precision,
    Section,
    Share,
    StageSection,
)

Momentum = Annotated[float, Field(ge=0, lt=1)]
Area = Annotated[float, Field(gt=0, le=1)]


class Model(Section):
    config: str = "biomedclip_vit_b16"
    """Name of a file in biomedclip_ray/clip/configs or URI of an open_clip model config (JSON)."""
    init: Literal["pretrained", "random"] = "pretrained"
    """"pretrained": weights that the model config names must be reached, or the run stops; "random":
    none is asked for.
    """
    tokenizer: str = "fit"
    """"fit": a WordPiece fitted on the training captions; else a Hugging Face tokenizer's name or folder."""
    vocab_size: Positive = 4096
    """Tokens of a fitted tokenizer."""
    bundle: str | None = None
    """URI of a CLIP to start from instead of the model config (local-dir:PATH, hf-hub:NAME, open_clip:MODEL:TAG,
    open_clip:MODEL:FILE[:TAG], a transformers folder of CLIP, or one of our bundles)."""


class TrainResources(Section):
    workers: Positive | tuple[Positive, Positive] = 1
    """Training workers (processes in the gradient's group); [min, max]: as many as the cluster has,
    which may change.
    """
    resize_interval_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds between looks for workers to add, where `workers` is [min, max]; each change costs a restart of ten
    seconds and the steps since the last checkpoint.
    """
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
    compile: bool = False
    """torch.compile the blocks of both towers: a minute at each start, then faster steps on GPUs."""
    shard: bool = False
    """FSDP2 instead of DDP: weights, gradients and optimiser are cut over the workers, for towers that fit on none."""
    feed_cpus: Annotated[float, Field(gt=0)] = 0.5
    """Logical CPUs of one task that decodes and tokenizes."""
    feed_concurrency: Positive = 2
    """Such tasks at once at most, as far as there are CPUs for them."""
    prefetch_batches: Annotated[int, Field(ge=0)] = 2
    """Batches a worker holds ready."""
    validation_cpus: Annotated[float, Field(gt=0)] = 0.25
    """Logical CPUs, so threads, of the task that measures a checkpoint, beside the workers; without a GPU of its own a
    ViT-B/16 and a BERT read one or two pairs a second on each.
    """
    validation_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of that task; 1: one more than the workers have, and seconds instead of minutes."""
    max_failures: int = 3
    """Worker losses after which the run ends; each resumes from the last checkpoint."""
    no_progress_timeout_s: Positive = 600
    """Seconds without a block moving before the run stops and names the operator; longer than any pause
    of the workers.
    """
    wait_for_nodes_s: Positive = 86_400
    """Seconds that a shortage of nodes for the workers is waited out before the run ends."""

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
    """Passes over the train split; may be a fraction. 0: nothing is trained, the CLIP of model.bundle is taken as it
    is.
    """
    batch: Positive = 4096
    """Pairs in one optimiser step over all workers; divided by `micro_batches` and by the workers."""
    micro_batches: Positive = 8
    """Micro-batchs a global batch is cut into: any number of workers that divides it sees the same batches."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)] = 2000
    """Optimiser steps of linear warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    """AdamW; not on norms, biases and the logit scale."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.98)
    """AdamW."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """AdamW."""
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm; null: no limit."""
    loss: Literal["infonce", "sigmoid"] = "infonce"
    """"infonce": softmax over the global batch, as CLIP; "sigmoid": SigLIP's, for a model config with
    init_logit_bias.
    """
    lock: tuple[Literal["image", "text"], ...] = ()
    """Towers that stay as they are."""
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the image's patches that a training step leaves out (FLIP): 0.5 nearly halves the image tower's cost."""
    patch_dropout_off_epochs: Annotated[float, Field(ge=0)] = 1.0
    """Epochs at the end that see whole images again, as whoever uses the model does."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a running average of the weights, which is then what is validated and exported; null: none is kept."""
    kind_weights: Annotated[dict[str, Annotated[float, Field(ge=1)]], KnownKinds] = Field(default_factory=dict)
    """Figure kind -> how often an epoch shows a pair of it (1.5: half of them twice); kinds not named are shown once.
    What is too frequent is thinned by curate.balance.
    """
    texts: Annotated[dict[Literal["caption", "mentions", "panels"], Annotated[float, Field(gt=0)]], Later()] = Field(
        default_factory=dict
    )
    """Which text of a whole figure a visit trains on, drawn with these weights: its caption, a sentence that cites it,
    or one panel's part of the caption; {caption: 2, mentions: 1}. Where there is none of a kind, the caption. {}:
    always the caption. Validation keeps the caption.
    """
    on_nan: Literal["stop", "skip"] = "stop"
    """A step whose loss or gradient is not finite never touches the weights; "stop": the run then ends and names the
    last good checkpoint, "skip": it goes on, as long as such steps stay below one in a hundred.
    """
    divergence_steps: Positive | None = 500
    """Steps on end that the loss may stand above the middle between the best it had and the chance loss (or, before it
    has learned anything and after the warm-up, a tenth above the chance loss). Then the run ends and names the last
    checkpoint from before it rose; none is made meanwhile. null: it goes on whatever the loss does.
    """
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of the forward pass (autocast); weights and optimiser stay fp32."""
    crop_scale: tuple[Area, Area] = (0.9, 1.0)
    """Share of the image's area that a random resized crop keeps; (1, 1): none."""
    window: Positive = 8192
    """Pairs shuffled together; row groups of a window are drawn from the whole epoch."""
    seed: int = 0
    """Of every draw: the same seed, the same result."""
    checkpoint_steps: Positive = 500
    """Optimiser steps between checkpoints."""
    keep_checkpoints: Positive = 2
    """Checkpoints kept: the best by validation recall where validation_pairs asks for it, and the newest besides; else
    the newest.
    """
    validation_pairs: Annotated[int, Field(ge=0)] = 0
    """Pairs of the validation split that each checkpoint is measured on, apart from the training workers; the best
    becomes the bundle. 0: the last checkpoint does."""
    log_steps: Positive = 10
    """Optimiser steps between lines of metrics.jsonl."""
    trackers: tuple[Literal["mlflow", "wandb"], ...] = ()
    """Where the lines of metrics.jsonl go besides TensorBoard; each is told its server by its own environment
    variables.
    """
    log_pairs: bool = False
    """Write pairs/*.jsonl with {step, attempt, positions} per rank: who trained on what, to check the order."""
    resources: TrainResources = TrainResources()

    @model_validator(mode="after")
    def _divisible(self) -> Train:
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"train.crop_scale={list(self.crop_scale)} must be [min, max]")
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
        if self.resources.shard and not isinstance(workers, int):
            raise ValueError(
                f"train.resources.shard=true needs the same number of blocks on every worker, so a fixed "
                f"train.resources.workers instead of {list(workers)}"
            )
        if self.patch_dropout and self.epochs <= self.patch_dropout_off_epochs:
            raise ValueError(
                f"train.patch_dropout_off_epochs={self.patch_dropout_off_epochs:g} leaves none of train.epochs="
                f"{self.epochs:g} to train.patch_dropout={self.patch_dropout:g}"
            )
        return self


class Fusion(Section):
    epochs: Annotated[int, Field(ge=0)] = 0
    """Passes over the training questions of each VQA split; 0 trains no fusion head."""
    batch: Positive = 64
    """Questions of one optimiser step."""
    rate: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate of the head."""
    tower_rate: Annotated[float, Field(ge=0)] = 0.0
    """That of the towers; 0 leaves them frozen, and each image and question goes through them once."""
    width: Positive = 256
    """Of the head, where its towers' tokens are not narrower; a multiple of 4, its attention heads."""
    layers: Positive = 2
    """Of cross-attention."""
    workers: Positive = 1
    """Of Ray Train, each with what evaluate.resources says."""

    @model_validator(mode="after")
    def _divides(self) -> Fusion:
        if self.width % 4:
            raise ValueError(f"width {self.width} is no multiple of 4, the attention heads")
        return self


class Evaluate(Section):
    split: Literal["test", "validation"] = "test"
    """The split that is measured on; never the one that chose the checkpoint."""
    bootstraps: Positive = 1000
    """Resamples of the pool behind each 95% interval."""
    sets: tuple[str, ...] = ()
    """URIs of labelled sets (folders with dataset.json, in any layout of evaluate/layouts.py)."""
    bundles: tuple[str, ...] = ()
    """CLIPs of others, measured on the same sets and compared: anything that Encoder.load reads."""
    max_left_out: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of a set's images, or of the pool, that may be left out for want of a finite vector; more is an error."""
    corruptions: bool = False
    """Whether each classification set is asked again with 500 test images made worse in 25 ways; encodes
    12,500 more.
    """
    precision: Annotated[Literal["float32", "bfloat16"], Later()] = "float32"
    """In what the towers compute; vectors in bfloat16 are kept apart from those in float32."""
    fusion: Annotated[Fusion, Later()] = Fusion()
    """A head that answers visual questions from patches, trained for each VQA split."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of every draw: the same seed, the same result."""
    resources: PartResources = PartResources()


class Embed(StageSection):
    splits: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")
    """Splits whose kept pairs enter the index."""
    batch: Positive = 64
    """Pairs in one forward pass."""
    precision: Precision = "float32"
    """In what the towers compute: float32, bfloat16 (cosine to float32 about 0.9999), or auto, which each process
    measures for its own device; vectors are stored as float32.
    """
    thumbnail: Positive = 128
    """Pixels of the long side of the image that search shows."""
    ann_rows: Positive = 10_000
    """Rows from which an approximate index is built; below it search is exact and takes up to 10 ms (100,000 rows:
    270).
    """
    non_finite_limit: Share = 0.001
    """Share of the pairs whose vectors may be non-finite (ledger rows); above it the stage ends: the
    bundle is broken.
    """
