"""Sets are encoded in parts all over a cluster: the same vectors, a killed worker loses one part, nothing twice."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.config import Evaluate, Fusion, PartResources
from biomedclip_ray.evaluate import evaluate, features, fusion
from biomedclip_ray.evaluate.bundles import Asked, encode_on_cluster
from biomedclip_ray.evaluate.features import features_of, jobs_of, recalled
from biomedclip_ray.evaluate.sets import load_set
from biomedclip_ray.run.stream import stream
from biomedclip_ray.store.place import Place
from tests.evaluate.conftest import about, bundles, make_set
from tests.evaluate.test_evaluate_cli import main
from tests.evaluate.test_fusion import quizzes

__all__ = ["about", "bundles", "main", "make_set"]  # fixtures
pytestmark = pytest.mark.usefixtures("ray_cluster")


class Squares:
    """Dies by kill -9 at its first job of 3."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def __call__(self, job: int) -> int:
        with (self.folder / f"{job}").open("a") as file:
            file.write("x")
        if job == 3 and (self.folder / "3").stat().st_size == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return job * job


def test_a_killed_worker_is_replaced_and_its_job_alone_is_done_again(tmp_path):
    resources = PartResources(concurrency=1)
    found = stream("squares", Squares, (str(tmp_path),), range(6), resources)
    assert list(found) == [0, 1, 4, 9, 16, 25]
    assert {int(file.name): file.stat().st_size for file in tmp_path.iterdir()}[3] == 2


def test_the_parts_of_a_set_come_back_in_order_and_hold_the_vectors(bundles, make_set, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PART", 7)
    labelled = load_set(str(make_set()))
    assert [job[2:] for job in jobs_of(labelled, "test")] == [(0, 7), (7, 14), (14, 21), (21, 28), (28, 30)]
    root = str(tmp_path / "features")
    found = encode_on_cluster(str(bundles[0]), [labelled], root, PartResources())
    assert sum(part.encoded for part in found.values()) == 60
    encoder = Encoder.load(bundles[0])
    assert len(Place(features_of(root, encoder)).list("images")) == 10
    asked = Asked(encoder, [labelled], root, Evaluate(bootstraps=20), recalled(found))
    images = labelled.tables["test"].images.fetch(0, 30)
    np.testing.assert_allclose(asked.vectors["tiny"].images("test"), encoder.encode_images(images), atol=1e-5)
    again = encode_on_cluster(str(bundles[0]), [labelled], root, PartResources())
    assert sum(part.encoded for part in again.values()) == 0


def test_the_command_on_a_cluster_gives_what_it_gives_without(main, bundles, make_set, tmp_path, monkeypatch):
    where = [str(make_set())]
    command = ["--bundles", *map(str, bundles), "--sets", *where, "--draws", "50", "--out"]
    assert main([*command, str(tmp_path / "here")]) == 0
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    assert main([*command, str(tmp_path / "there")]) == 0
    here, there = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("here", "there"))
    assert here["encoded"] == there["encoded"] == {name: {"images": 60, "texts": 8} for name in ("clip0", "clip1")}
    for name in ("clip0", "clip1"):
        for task in ("zero_shot", "linear_probe"):
            ours, theirs = (found["bundles"][name]["tiny"][task]["accuracy"] for found in (here, there))
            assert ours == pytest.approx(theirs)
    assert main([*command, str(tmp_path / "there"), "--seed", "1"]) == 0
    again = json.loads((tmp_path / "there" / "evaluation.json").read_text())
    assert again["encoded"] == {name: {"images": 0, "texts": 0} for name in ("clip0", "clip1")}


def test_a_fusion_head_through_ray_train_is_the_one_trained_here(bundles, tmp_path):
    labelled = load_set(str(quizzes(tmp_path / "halves", 18)))
    section = Evaluate(fusion=Fusion(epochs=3, batch=8, width=32, layers=1))
    here, there = (
        fusion.Job.of(str(bundles[0]), str(tmp_path / name), labelled, "disjoint", section) for name in ("one", "two")
    )
    fusion.fit(here, Encoder.load(bundles[0]), fusion.InPlace(Place(here.place)))
    fusion.train_on_ray(there, PartResources())
    answers = [pq.read_table(Place(job.place).open(fusion.SAID)).to_pylist() for job in (here, there)]
    assert answers[0] == answers[1]
    assert Place(there.place).list("run")  # checkpoints, from which a killed run goes on
    fusion.train_on_ray(there, PartResources())  # done: nothing starts


@pytest.mark.slow
def test_the_stage_trains_heads_first_and_its_tasks_read_what_they_said(bundles, tmp_path):
    labelled = load_set(str(quizzes(tmp_path / "halves", 18)))
    section = Evaluate(bootstraps=20, fusion=Fusion(epochs=1, batch=8, width=32, layers=1))
    uri, root = str(bundles[0]), str(tmp_path / "features")
    evaluate._fuse([uri], [labelled], root, section)
    encoded = encode_on_cluster(uri, [labelled], root, section.resources)
    _, shown, _ = evaluate._sets_of(uri, [labelled.uri], root, section, str(tmp_path), None, encoded)
    assert shown["halves"]["vqa_fusion"]["disjoint"]["all"]["n"] == 12
