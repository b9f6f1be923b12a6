"""Visual questions answered by a trained fusion head: the tokens of a question attend to the patches of its image.

The readout of vqa.py sees one vector an image; what stands in a corner of it is lost there. Here a small transformer
decoder (question tokens as targets, patches as memory) is trained over the answers of train, on frozen towers or with
them (`evaluate.fusion.tower_rate`). Beside it, in the same run and from the same batches, a head of the same size is
trained that sees the question alone, and the first is asked with images of other groups. Through Ray Train on a
cluster, in this process without; either goes on from its last epoch.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.config import Evaluate, Fusion, PartResources
from biomedclip_ray.evaluate.heads import Answerer, image_tokens, text_tokens
from biomedclip_ray.evaluate.sets import LabelledSet, load_set
from biomedclip_ray.evaluate.states import Data, States, sides
from biomedclip_ray.evaluate.vqa import answers_of, elsewhere
from biomedclip_ray.run.capacity import known
from biomedclip_ray.run.placement import place
from biomedclip_ray.store.place import Place
from biomedclip_ray.train.step import learning_rate, param_groups

SAID = "answers.parquet"
"""What each system answered to each test question: question_id, model, question_only, other_images."""
STATE = "state.pt"
WEIGHT_DECAY = 0.05
WARMUP = 0.1
"""Of all steps."""
_RECIPE = 2
"""Raised with whatever changes a head's answers."""


@dataclass(frozen=True)
class Job:
    """One split of one set for one bundle."""

    bundle: str
    labelled: str
    split: str
    place: str
    """URI of the folder with state and answers."""
    states: str
    """That of what the bundle's frozen towers make of images and questions."""
    section: Fusion
    precision: Literal["float32", "bfloat16"]
    seed: int

    @classmethod
    def of(cls, bundle: str, features: str, labelled: LabelledSet, split: str, section: Evaluate) -> Job:
        """`features`: URI of the bundle's own. Another recipe, seed or file of the set is another head."""
        about = [_RECIPE, labelled.files, split, section.fusion.content(), section.seed]
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        where, states = (Place(features).at(folder).uri for folder in (f"fusion/{name}", "states"))
        return cls(bundle, labelled.uri, split, where, states, section.fusion, section.precision, section.seed)

    @property
    def done(self) -> bool:
        return Place(self.place).exists(SAID)


class Keeper(Protocol):
    """Where the state after an epoch goes, and where it comes from."""

    def restore(self) -> dict[str, Any] | None: ...

    def keep(self, epoch: int, state: dict[str, Any]) -> None: ...


class InPlace:
    """One file that is replaced."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def restore(self) -> dict[str, Any] | None:
        return torch.load(io.BytesIO(self.place.read(STATE))) if self.place.exists(STATE) else None

    def keep(self, epoch: int, state: dict[str, Any]) -> None:
        sink = io.BytesIO()
        torch.save(state, sink)
        self.place.write(STATE, sink.getvalue())


class InRayTrain:
    """Checkpoints of the Ray Train run that this worker is in."""

    def restore(self) -> dict[str, Any] | None:
        from ray import train

        found = train.get_checkpoint()
        if found is None:
            return None
        with found.as_directory() as folder:
            state: dict[str, Any] = torch.load(Path(folder) / STATE)
            return state

    def keep(self, epoch: int, state: dict[str, Any]) -> None:
        from ray import train

        if train.get_context().get_world_rank():
            train.report({"epoch": epoch})
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / STATE)
            train.report({"epoch": epoch}, checkpoint=train.Checkpoint.from_directory(folder))


def fit(
    job: Job,
    encoder: Encoder,
    keeper: Keeper,
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Train both heads from where `keeper` says they are, ask the test questions, write SAID.

    Raises:
        TooLittle: the split holds too little to train on.
    """
    section, labelled = job.section, load_set(job.labelled)
    with tempfile.TemporaryDirectory() as scratch:
        states = States(encoder, Place(job.states))
        train, test = sides(labelled, job.split, states, section.tower_rate > 0, Path(scratch))
        answers = answers_of(train.questions)
        names = np.unique(answers)
        truth = torch.from_numpy(np.searchsorted(names, answers))
        torch.manual_seed(job.seed)
        widths = _widths(encoder, train)
        model = Answerer(encoder.model, encoder.tokenizer.pad_id, widths, len(names), section).to(encoder.device)
        optimiser = torch.optim.AdamW(_groups(model, section))
        peaks = [group["lr"] for group in optimiser.param_groups]  # before a state brings the rates that it stopped at
        whole = prepare(model)
        begun, state = 0, keeper.restore()
        if state is not None:
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            begun = state["epoch"]
        per_epoch = -(-len(answers) // section.batch)
        for epoch in range(begun, section.epochs):
            torch.manual_seed(
                job.seed + 1000 * epoch
            )  # dropout: an epoch is the same whether it was interrupted or not
            whole.train()
            order = np.random.default_rng([job.seed, epoch]).permutation(len(answers))
            for number in range(per_epoch):
                rows = order[number * section.batch : (number + 1) * section.batch]
                rows = rows[rank::world] if len(rows) >= world else rows  # every worker has something to add
                step, steps = epoch * per_epoch + number, section.epochs * per_epoch
                for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                    group["lr"] = learning_rate(step, peak, int(WARMUP * steps), steps)
                logits, blind = whole(*train.batch(rows, encoder.device))
                right = truth[rows].to(encoder.device)
                loss = nn.functional.cross_entropy(logits, right) + nn.functional.cross_entropy(blind, right)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
            after = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch + 1}
            keeper.keep(epoch + 1, after)
        if rank == 0:
            _ask(model, test, names, encoder.device, job)


@torch.inference_mode()
def _ask(model: Answerer, test: Data, names: np.ndarray, device: torch.device, job: Job) -> None:
    model.eval()
    clusters = np.unique(test.questions["group"].to_pylist(), return_inverse=True)[1]
    other = test.rows[elsewhere(clusters, job.seed)]
    said: dict[str, list[str]] = {"model": [], "question_only": [], "other_images": []}
    for start in range(0, len(test.rows), job.section.batch):
        rows = np.arange(start, min(start + job.section.batch, len(test.rows)))
        seen, blind = model(*test.batch(rows, device))
        elsewhere_seen, _ = model(*test.batch(rows, device, other))
        for name, logits in (("model", seen), ("question_only", blind), ("other_images", elsewhere_seen)):
            said[name] += names[logits.argmax(dim=1).cpu().numpy()].tolist()
    sink = io.BytesIO()
    pq.write_table(pa.table({"question_id": test.questions["question_id"], **said}), sink)
    Place(job.place).write(SAID, sink.getvalue())


def _widths(encoder: Encoder, train: Data) -> tuple[int, int]:
    """Widths of the question's and the image's tokens."""
    _, question, image = train.batch(np.arange(1), encoder.device)
    with torch.inference_mode():
        if not question.is_floating_point():
            question, image = text_tokens(encoder.model, question), image_tokens(encoder.model, image)
    return question.shape[-1], image.shape[-1]


def _groups(model: Answerer, section: Fusion) -> list[dict[str, Any]]:
    """Heads at `rate`, towers at `tower_rate`."""
    groups = [
        group | {"lr": section.rate}
        for group in param_groups([p for n, p in model.named_parameters() if not n.startswith("towers.")], WEIGHT_DECAY)
    ]
    if model.towers is not None:
        groups += [g | {"lr": section.tower_rate} for g in param_groups(model.towers.parameters(), WEIGHT_DECAY)]
    return groups


def train_loop(config: dict[str, Any]) -> None:
    """What each worker of Ray Train runs."""
    from ray import train
    from ray.train.torch import get_device, prepare_model

    job: Job = config["job"]
    encoder = Encoder.load(job.bundle, device=get_device(), precision=job.precision, packed=False)
    context = train.get_context()
    unused = {"find_unused_parameters": True}  # the towers' projections

    def prepare(model: nn.Module) -> nn.Module:
        return prepare_model(model, parallel_strategy_kwargs=unused)

    fit(job, encoder, InRayTrain(), prepare, context.get_world_rank(), context.get_world_size())


def train_on_ray(job: Job, resources: PartResources) -> None:
    """Train through Ray Train, unless it is done; a run that was killed goes on from its last epoch."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    if job.done:
        return
    worker, selector = place(known(), resources.num_cpus, resources.num_gpus).bundle
    TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=job.section.workers,
            use_gpu=bool(resources.num_gpus),
            resources_per_worker=worker,
            label_selector=selector or None,
        ),
        run_config=RunConfig(
            name="run",
            storage_path=job.place,
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    ).fit()


def jobs_of(bundle: str, features: str, sets: Sequence[LabelledSet], section: Evaluate) -> list[Job]:
    """The heads that some sets ask for: none unless `evaluate.fusion.epochs`."""
    asked = [
        (one, split)
        for one in sets
        for split, parts in one.splits.items()
        if section.fusion.epochs and "train" in parts
    ]
    return [Job.of(bundle, features, labelled, split, section) for labelled, split in asked]
