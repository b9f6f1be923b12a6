"""kill -9 of the driver while it trains, then the same command: the same weights, the same curve, each
batch as it was.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import drive
import tiny

from biomedclip_ray.store.product import Product
from biomedclip_ray.train.checkpoint import steps_done
from biomedclip_ray.train.journal import attempts, trained_pairs
from biomedclip_ray.train.metrics import read
from biomedclip_ray.train.train import train

TRAIN = Path(drive.__file__)
ENOUGH_S = 150


def start(root: Path | str, workers: int) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, str(TRAIN), str(root), str(workers)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def run(root: Path | str, workers: int) -> str:
    driver = start(root, workers)
    output, _ = driver.communicate(timeout=ENOUGH_S)
    assert driver.returncode == 0
    return output.strip().splitlines()[-1]


def kill_after(root: Path, workers: int, reached: Callable[[], bool]) -> None:
    """Start a driver and kill it hard as soon as that is so."""
    driver = start(root, workers)
    deadline = time.monotonic() + ENOUGH_S
    while not reached():
        assert driver.poll() is None, "the driver ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()


def product_of(root: Path | str, workers: int) -> Product:
    return train.plan(drive.config(root, workers), *tiny.products(root))


def weights(product: Product) -> dict[str, torch.Tensor]:
    return load_file(Path(product.place.at("bundle").uri) / "open_clip_model.safetensors")


def assert_each_batch_as_it_was(product: Product) -> None:
    """Every step is told of, and each batch holds the positions that are its own."""
    assert [line["step"] for line in read(product.place)] == list(range(1, drive.STEPS + 1))
    used = trained_pairs(product.place)
    begins = {attempt["attempt"]: attempt["first_step"] for attempt in attempts(product.place)}
    lasted = {number: begins.get(number + 1, drive.STEPS + 1) for number in begins}  # what came later was trained again
    for (attempt, step), positions in used.items():
        whole = list(range((step - 1) * 32, step * 32))
        died = step >= lasted[attempt]  # a rank may not have told of its last step
        assert positions == whole or (died and set(positions) < set(whole))
    kept = [step for attempt, step in used if begins[attempt] <= step < lasted[attempt]]
    assert kept == list(range(1, drive.STEPS + 1))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Product:
    root = tmp_path_factory.mktemp("undisturbed")
    assert run(root, 1) == "ran"
    return product_of(root, 1)


@pytest.mark.slow
def test_a_killed_driver_goes_on_to_the_same_weights(undisturbed, tmp_path):
    product = product_of(tmp_path, 1)
    kill_after(tmp_path, 1, lambda: steps_done(product.place) >= 20)
    half = tmp_path / "train" / product.fingerprint / "checkpoints" / "step-00000110"
    half.mkdir(exist_ok=True)
    (half / "model.safetensors").write_bytes(b"half")  # an upload that the kill cut off
    snapshot = half.parent / "checkpoint_manager_snapshot.json"
    snapshot.write_bytes(snapshot.read_bytes()[:50])  # the kill came while Ray wrote it
    assert run(tmp_path, 1) == "resumed"
    assert_each_batch_as_it_was(product)
    begins = [attempt["first_step"] for attempt in attempts(product.place)]
    assert len(begins) == 2 and begins[1] % 10 == 1 and begins[1] > 10  # the snapshot before the one that was cut
    losses, whole = ([line["loss"] for line in read(one.place)] for one in (product, undisturbed))
    assert losses == pytest.approx(whole, rel=1e-6)
    for name, value in weights(undisturbed).items():
        torch.testing.assert_close(weights(product)[name], value, rtol=1e-6, atol=1e-7)
    assert product.manifest["bundle_id"] == undisturbed.manifest["bundle_id"]


@pytest.fixture(scope="module")
def undisturbed_two(tmp_path_factory) -> Product:
    root = tmp_path_factory.mktemp("undisturbed_two")
    assert run(root, 2) == "ran"
    return product_of(root, 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "workers", [(1,) * 6, (2,) * 4, (2, 1, 2, 1, 2, 1)], ids=["one worker", "two workers", "two, one, two workers"]
)
def test_killed_at_random_steps_it_ends_as_if_undisturbed(request, tmp_path, workers):
    product = product_of(tmp_path, workers[0])
    kills = len(workers) - 1
    steps = sorted(
        random.Random(str(workers)).sample(range(11, drive.STEPS - 9), kills)
    )  # of 2.25 an epoch: any place of it

    def reached(attempt: int) -> bool:
        """True once that attempt, counted from 1, has trained a step at least as late as the one it is killed at."""
        files = (re.search(r"attempt-(\d+)-rank-\d+-step-(\d+)", name) for name in product.place.list("pairs"))
        return any(int(one[1]) == attempt and int(one[2]) >= steps[attempt - 1] for one in files if one)

    for attempt, count in enumerate(workers[:-1], start=1):
        kill_after(tmp_path, count, lambda attempt=attempt: reached(attempt))
    assert run(tmp_path, workers[-1]) == "resumed"
    assert_each_batch_as_it_was(product)
    assert [len(attempt["workers"]) for attempt in attempts(product.place)] == list(workers)
    same = request.getfixturevalue("undisturbed_two" if set(workers) == {2} else "undisturbed")
    losses, whole = ([line["loss"] for line in read(one.place)] for one in (product, same))
    unchanged = len(set(workers)) == 1
    assert losses == pytest.approx(whole, rel=1e-6 if unchanged else 1e-2)
    if unchanged:
        assert product.manifest["bundle_id"] == same.manifest["bundle_id"]


@pytest.mark.slow
def test_an_object_store_holds_all_that_a_local_disk_does(undisturbed, s3, tmp_path):
    root = s3.upload(tmp_path) + "/root"
    assert run(root, 1) == "ran"
    product = product_of(root, 1)
    assert_each_batch_as_it_was(product)
    assert product.manifest["bundle_id"] == undisturbed.manifest["bundle_id"]
    folders = ({name.split("/")[0] for name in one.place.list()} for one in (product, undisturbed))
    assert next(folders) == next(folders)
