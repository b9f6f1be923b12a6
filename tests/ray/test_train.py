"""Training on Ray: two workers on two cores get their data, a killed worker costs nothing but time, the
bundle loads.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import signal
import struct
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import tiny

from biomedclip_ray.clip.encoder import Encoder, usual_device
from biomedclip_ray.config import ConfigError, parse
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product
from biomedclip_ray.train.batches import Feed, InOrder, batches
from biomedclip_ray.train.checkpoint import folder_name, kept, steps_done
from biomedclip_ray.train.journal import attempts, trained_pairs
from biomedclip_ray.train.metrics import MetricsLog, read
from biomedclip_ray.train.order import Order
from biomedclip_ray.train.rows import find_rows, texts
from biomedclip_ray.train.step import learning_rate
from biomedclip_ray.train.train import DivergedError, catch_up, train
from biomedclip_ray.train.validate import figures as figures_of

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def two(root):
    return tiny.products(root, mentions=3)


STEPS = 80


def kill_after(place, step: int, rank: int) -> threading.Thread:
    """Kill a worker hard as soon as there is a checkpoint of `step` or more."""

    def watch() -> None:
        while steps_done(place) < step:
            time.sleep(0.1)
        os.kill(attempts(place)[0]["workers"][rank]["pid"], signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_the_feed_deals_exact_blocks_in_order_from_any_position(two):
    from biomedclip_ray.clip.tokenizer import fit_tokenizer

    pairs, corpus = two
    rows = find_rows(pairs, corpus, "train")
    tokenizer = fit_tokenizer(texts(pairs, corpus, "train"), 200, 16)
    feed = ray.put(Feed(pairs, rows, Order(rows.chunk_rows, 40, 0), tokenizer, 16, (0.9, 1.0), 0, 8))
    resources = tiny.config(Path("unused")).train.resources
    shards = InOrder().configure({"train": batches(feed, 16, 136, resources)}, 2, None, None)

    @ray.remote(num_cpus=0.25)
    def consume(shard) -> list[np.ndarray]:
        return [block["position"] for block in shard.iter_batches(batch_size=None, batch_format="numpy")]

    got = ray.get([consume.remote(shard["train"]) for shard in shards])
    dealt = [block for turn in zip(got[0], got[1] + [None], strict=False) for block in turn if block is not None]
    assert [len(block) for block in dealt] == [8] * 15
    assert np.concatenate(dealt).tolist() == list(range(16, 136))


def test_a_read_that_fails_for_a_moment_is_tried_again_and_no_block_changes(two, tmp_path):
    from biomedclip_ray.clip.tokenizer import fit_tokenizer

    class Flaky(Product):
        def file(self, part):
            if len(list(tmp_path.iterdir())) < 2:  # twice, whoever reads
                (tmp_path / f"{time.monotonic_ns()}").touch()
                raise OSError("SLOW_DOWN")
            return super().file(part)

    pairs, corpus = two
    rows = find_rows(pairs, corpus, "train")
    flaky = Flaky(*(getattr(pairs, field.name) for field in dataclasses.fields(Product)))
    tokenizer = fit_tokenizer(texts(pairs, corpus, "train"), 200, 16)
    feed = ray.put(Feed(flaky, rows, Order(rows.chunk_rows, 40, 0), tokenizer, 16, (0.9, 1.0), 0, 8))
    shards = InOrder().configure({"train": batches(feed, 0, 80, tiny.config(Path("x")).train.resources)}, 1, None, None)
    blocks = shards[0]["train"].iter_batches(batch_size=None, batch_format="numpy")
    assert np.concatenate([block["position"] for block in blocks]).tolist() == list(range(80))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture(scope="module")
def killed(root, two):
    """Two workers on two cores; rank 1 is killed hard in the middle, with the feed's prefetch full. Texts vary."""
    resources = {"workers": 2, "max_failures": 1, "prefetch_batches": 8}
    varied = {"texts": {"caption": 1, "mentions": 2}, "log_pairs": True, "checkpoint_steps": 20}
    config = tiny.config(root, epochs=(STEPS - 0.5) * 32 / 72, resources=resources, **varied)
    product = train.plan(config, *two)
    killer = kill_after(product.place, 20, rank=1)
    train.run(config, *two)
    killer.join()
    return config, product


def test_a_killed_worker_leaves_every_global_batch_as_it_was(killed, two):
    _, product = killed
    steps = trained_pairs(product.place)
    begins = [attempt["first_step"] for attempt in attempts(product.place)]
    assert begins[0] == 1 and len(begins) == 2 and 20 < begins[1] < STEPS and begins[1] % 20 == 1
    for (attempt, step), positions in steps.items():
        whole = list(range((step - 1) * 32, step * 32))
        died = (
            attempt == 1 and (1, step + 1) not in steps
        )  # the rank that was killed may not have told of its last step
        assert positions == whole or (died and set(positions) < set(whole))
    assert [step for attempt, step in steps if attempt == 2] == list(range(begins[1], STEPS + 1))
    assert [line["step"] for line in read(product.place)] == list(range(1, STEPS + 1))
    assert product.manifest["attempts"] == 2 and product.manifest["steps"] == STEPS


@pytest.fixture(scope="module")
def undisturbed(killed, two, tmp_path_factory):
    """One worker that nobody kills, and checkpoints that are measured on seven validation pairs."""
    config, _ = killed
    changes = {**config.train.model_dump(), "validation_pairs": 7, "checkpoint_steps": STEPS // 2, "log_pairs": False}
    changes["resources"]["workers"] = 1
    changed = {"root": str(tmp_path_factory.mktemp("alone")), "train": type(config.train).model_validate(changes)}
    return train.run(config.model_copy(update=changed), *two).product


def test_a_killed_worker_leaves_the_loss_curve_as_it_was(killed, undisturbed):
    """One undisturbed worker learns what two, one of them killed, have learned."""
    ours, other = ([line["loss"] for line in read(one.place)] for one in (killed[1], undisturbed))
    assert ours == pytest.approx(other, rel=1e-3)
    assert ours[-1] < ours[0]


def test_each_checkpoint_is_measured_and_validation_chooses_the_bundle(undisturbed):
    manifest = undisturbed.manifest
    measured = {int(step): figures for step, figures in manifest["validation"].items()}
    assert sorted(measured) == [STEPS // 2, STEPS]
    assert all(figures["n"] == 7 for figures in measured.values())
    score = {step: figures["text_to_image"] + figures["image_to_text"] for step, figures in measured.items()}
    assert manifest["chosen_by"] == "validation"
    assert manifest["chosen_step"] == max(score, key=lambda step: (score[step], step))


def test_what_a_kill_left_unmeasured_is_measured_before_the_bundle_is_made(undisturbed, killed, monkeypatch):
    place, before = undisturbed.place, undisturbed.manifest["validation"]
    config = killed[0].model_copy(update={"root": undisturbed.root})
    assert kept(place)
    for found in kept(place):
        place.delete(f"validation/{Path(found.path).name}.json")
    catch_up(config, place)
    again = {str(step): figures for step, figures in figures_of(place).items()}
    assert again and all(before[step] == pytest.approx(figures) for step, figures in again.items())


@ray.remote(num_cpus=0.1)
def _device() -> str:
    torch.cuda.is_available = lambda: True
    return usual_device()


def test_a_task_that_asked_for_no_gpu_takes_none():
    """Ray hides no GPU from it: the first one is a training worker's."""
    assert ray.get(_device.remote()) == "cpu"


@pytest.mark.slow
def test_the_best_checkpoint_by_validation_becomes_the_bundle_and_no_other_is_kept_but_the_last(tmp_path):
    """Captions of the train and test splits name other colours and shapes than are drawn: what is learned from them
    costs recall on the validation split, and only there.
    """
    pairs, corpus = tiny.products(tmp_path, articles=40, figures=13, misleading=("train", "test"))
    changes = {"epochs": (24 - 0.5) * 32 / 360, "checkpoint_steps": 6, "validation_pairs": 60, "keep_checkpoints": 1}
    product = train.run(tiny.config(tmp_path, **changes), pairs, corpus).product
    manifest = product.manifest
    score = {int(step): one["text_to_image"] + one["image_to_text"] for step, one in manifest["validation"].items()}
    best = max(score, key=lambda step: (score[step], step))
    assert sorted(score) == [6, 12, 18, 24] and best < 24 and score[best] > score[24] + 0.1
    assert (manifest["chosen_by"], manifest["chosen_step"]) == ("validation", best)
    assert {path.name for path in tmp_path.glob("train/*/checkpoints/step-*")} == {folder_name(best), folder_name(24)}
    measured = pq.read_table(product.place.at("validation.parquet").uri)["pair_id"].to_pylist()
    assert len(measured) == 60 and {int(one.split(".")[0].removeprefix("PMC")) % 8 for one in measured} == {7}
    exported = load_file(Path(product.place.at("bundle").uri) / "open_clip_model.safetensors")
    for step in (best, 24):
        kept = load_file(Path(product.place.uri) / "checkpoints" / folder_name(step) / "model.safetensors")
        assert all(torch.equal(exported[name], value) for name, value in kept.items()) == (step == best)


def test_the_bundle_loads_and_the_manifest_tells_where_it_comes_from(killed, two):
    _, product = killed
    encoder = Encoder.load(product.place.at("bundle").uri, device="cpu")
    vectors = encoder.encode_text(["3 round red cells"])
    assert vectors.shape == (1, 32) and np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)
    manifest = product.manifest
    assert manifest["starts"] == {"image": "random", "text": "random"}
    assert manifest["chosen_by"] == "last" and manifest["bundle_id"] == encoder.bundle_id
    assert manifest["counts"] == [{"unit": "pair", "in": 72, "kept": 72, "dropped": {}}]
    assert manifest["shuffle"]["articles_per_batch"] > 0.8 * manifest["shuffle"]["articles_per_batch_ideal"]


def test_each_line_of_the_metrics_says_all_that_it_should(killed):
    config, product = killed
    lines = read(product.place)
    where = {f"{name}_share" for name in ("data_wait", "forward", "loss", "backward", "optimizer")}
    speed = {"pairs_per_s", "step_seconds", "tflop_per_s", "memory_bytes", "seconds"}
    learning = {"step", "epoch", "loss", "chance_loss", "lr", "logit_scale", "grad_norm", "skipped"}
    for line in lines:
        assert set(line) - {"mfu"} == learning | speed | where
        assert line["epoch"] == pytest.approx(line["step"] * 32 / 72)
        assert line["lr"] == pytest.approx(learning_rate(line["step"] - 1, config.train.lr, 4, STEPS))
        assert line["chance_loss"] == pytest.approx(math.log(32)) and line["skipped"] == 0
        assert line["pairs_per_s"] * line["step_seconds"] == pytest.approx(32)
        assert 0 < sum(line[name] for name in where) < 1.05
        assert min(line[name] for name in speed | {"loss", "grad_norm"}) > 0 and 1 < line["logit_scale"] <= 100
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)  # over both attempts


def scalars(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> tag -> value of TensorBoard's files; a file that was begun later takes the place of the steps it begins
    at.
    """
    found: dict[int, dict[str, float]] = {}
    for path in sorted(folder.iterdir(), key=lambda path: int(path.suffix.removeprefix(".from-"))):
        data = path.read_bytes()
        while data:  # length, its checksum, event, its checksum
            size = struct.unpack_from("<Q", data)[0]
            event = Event.FromString(data[12 : 12 + size])
            if event.session_log.status == event.session_log.START:
                found = {step: values for step, values in found.items() if step < event.step}
            for value in event.summary.value:
                found.setdefault(event.step, {})[value.tag] = value.simple_value
            data = data[16 + size :]
    return found


def test_tensorboard_shows_the_lines_of_the_metrics_each_step_once(killed):
    _, product = killed
    shown = scalars(Path(product.place.uri) / "tensorboard")
    lines = {line.pop("step"): line for line in read(product.place)}
    assert shown.keys() == lines.keys()
    for step, line in lines.items():
        assert shown[step] == pytest.approx({f"train/{name}": value for name, value in line.items()}, rel=1e-6)


def test_rays_metrics_tell_the_newest_line(tmp_path):
    """Asked where Prometheus asks, at the node's agent."""
    log = MetricsLog(Place(str(tmp_path)), 0)
    for step in (1, 2):
        log.line({"step": step, "loss": 2.5 / step, "pairs_per_s": 480.0})
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline, told = time.monotonic() + 60, {}
    while told != {"step": 2, "loss": 1.25, "pairs_per_s": 480} and time.monotonic() < deadline:
        time.sleep(0.5)  # the agent is told every few seconds
        with urllib.request.urlopen(url, timeout=10) as answer:
            page = answer.read().decode()
        mine = ray.get_runtime_context().get_worker_id()
        found = re.findall(r"^ray_biomedclip_train_(\w+){(.*)} (\S+)$", page, re.MULTILINE)
        told = {name: float(value) for name, labels, value in found if mine in labels}
    log.close()
    assert told == {"step": 2, "loss": 1.25, "pairs_per_s": 480}


def test_a_finished_product_is_skipped(killed, two):
    config, _ = killed
    started = time.monotonic()
    assert train.run(config, *two).state == "skipped"
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_a_sharded_run_whose_worker_is_killed_goes_on_from_the_shards_of_both(two, undisturbed, tmp_path):
    resources = {"workers": 2, "max_failures": 1, "shard": True}
    changes = {"epochs": (STEPS - 0.5) * 32 / 72, "checkpoint_steps": 20, "ema": 0.9, "validation_pairs": 7}
    config = tiny.config(tmp_path, **changes, resources=resources)
    product = train.plan(config, *two)
    killer = kill_after(product.place, 20, rank=1)
    train.run(config, *two)
    killer.join()
    assert len(attempts(product.place)) == 2 and product.manifest["chosen_by"] == "validation"
    (newest,) = Path(product.place.uri).glob(f"checkpoints/{folder_name(STEPS)}")
    assert {file.name for file in (newest / "shards").glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    ours, other = ([line["loss"] for line in read(one.place)] for one in (product, undisturbed))
    assert ours == pytest.approx(other, rel=1e-3)  # before the kill and after it
    vectors = Encoder.load(product.place.at("bundle").uri, device="cpu").encode_text(["3 round red cells"])
    assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)


def test_without_epochs_the_given_clip_becomes_the_product_with_nothing_trained(killed, two, tmp_path):
    given = Encoder.load(killed[1].place.at("bundle").uri, device="cpu")
    model = {"bundle": killed[1].place.at("bundle").uri}
    config = parse({"root": str(tmp_path), "model": model, "train": {"epochs": 0, "validation_pairs": 9}}, "test")
    product = train.run(config, *two).product
    taken = Encoder.load(product.place.at("bundle").uri, device="cpu")
    assert np.array_equal(taken.encode_text(["3 round red cells"]), given.encode_text(["3 round red cells"]))
    assert (product.manifest["steps"], product.manifest["chosen_by"]) == (0, "none")
    assert product.manifest["inputs"] == []
    assert given.bundle_id in product.manifest["starts"]["text"]
    assert train.run(config, *two).state == "skipped"


def test_a_sigmoid_loss_on_a_model_without_a_bias_is_refused_by_its_key(two, tmp_path):
    with pytest.raises(ConfigError) as caught:
        train.run(tiny.config(tmp_path, loss="sigmoid"), *two)
    assert str(caught.value).startswith("train.loss=sigmoid needs a model with a logit_bias; model.config=")
    assert "Traceback" not in str(caught.value)


def test_validation_pairs_without_a_validation_split_are_refused_before_any_worker(tmp_path):
    pairs, corpus = tiny.products(tmp_path, articles=6)  # the seventh would be the first of the validation split
    config = tiny.config(tmp_path, validation_pairs=5)
    with pytest.raises(ConfigError, match=r"train\.validation_pairs=5, but no kept pair .*curate\.splits\.validation"):
        train.run(config, pairs, corpus)
    assert attempts(train.plan(config, pairs, corpus).place) == []


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_and_names_the_last_good_checkpoint(two, tmp_path):
    config = tiny.config(tmp_path, lr=1e35, warmup_steps=0, checkpoint_steps=1, resources={"max_failures": 3})
    with pytest.raises(
        DivergedError,
        match=r"by step 1 loss, gradient or weights are not finite.*last good checkpoint is none.*train\.lr",
    ):
        train.run(config, *two)
    product = train.plan(config, *two)
    assert len(attempts(product.place)) == 1 and not product.finished


@pytest.mark.slow
def test_a_loss_that_stays_above_chance_ends_the_run_and_leaves_no_checkpoint_of_it(two, tmp_path):
    config = tiny.config(tmp_path, epochs=20, lr=1e-9, warmup_steps=0, divergence_steps=20, checkpoint_steps=4)
    with pytest.raises(DivergedError) as caught:
        train.run(config, *two)
    told = str(caught.value)
    assert (
        "at step 21 and has been above 3.812 since step 1 (its best was 3." in told
        and "the chance loss is 3.466" in told
    )
    assert "the last good checkpoint is none" in told and "train.divergence_steps=null" in told
    assert [line["step"] for line in read(train.plan(config, *two).place)] == list(range(1, 21))


@pytest.mark.slow
def test_a_loss_above_chance_may_go_on_where_that_is_asked(two, tmp_path):
    config = tiny.config(tmp_path, epochs=11, lr=1e-9, warmup_steps=0, divergence_steps=None, checkpoint_steps=4)
    product = train.run(config, *two).product
    assert min(line["loss"] for line in read(product.place)) > 3.812
