"""MLflow and Weights & Biases, with their own stores on this disk: a line arrives, and a restart goes on in the same
run.
"""

from __future__ import annotations

import shutil
import time

import pytest

from biomedclip_ray.store.place import Place
from biomedclip_ray.train import trackers
from biomedclip_ray.train.check import check
from biomedclip_ray.train.metrics import MetricsLog, read
from tests.train import tiny


def test_mlflow_has_one_run_of_the_product_with_every_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    from mlflow import MlflowClient

    place = Place(str(tmp_path / "0123abcd"))
    for first in (0, 2):
        log = MetricsLog(place, first, trackers.open_trackers(("mlflow",), place, {"lr": 0.1}))
        for step in (first + 1, first + 2):
            log.line({"step": step, "loss": 1.0 / step})
        log.close()
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name(trackers.PROJECT).experiment_id])
    assert run.info.run_name == "0123abcd" and run.data.params == {"lr": "0.1"} and run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1.0 / step) for step in range(1, 5)]


def test_a_tracker_that_fails_in_the_middle_costs_its_lines_and_not_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    place = Place(str(tmp_path / "0123abcd"))
    log = MetricsLog(place, 0, trackers.open_trackers(("mlflow",), place, {}))
    log.line({"step": 1, "loss": 1.0})
    shutil.rmtree(tmp_path / "store")
    log.line({"step": 2, "loss": 0.5})
    log.line({"step": 3, "loss": 0.4})
    log.close()
    assert [line["step"] for line in read(place)] == [1, 2, 3]
    (warning,) = [record.message for record in caplog.records if "takes no more lines" in record.message]
    assert warning.startswith("train: mlflow takes no more lines (") and "metrics.jsonl has them all" in warning


@pytest.mark.parametrize("gone", ["at the start", "at the end"])
def test_a_tracker_that_fails_at_either_end_costs_no_run(tmp_path, monkeypatch, caplog, gone):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = tmp_path / "store"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.as_uri())
    place = Place(str(tmp_path / "0123abcd"))
    if gone == "at the start":
        store.write_text("no folder")
    log = MetricsLog(place, 0, trackers.open_trackers(("mlflow",), place, {}))
    log.line({"step": 1, "loss": 1.0})
    if gone == "at the end":
        shutil.rmtree(store)
    log.close()
    assert [line["step"] for line in read(place)] == [1]
    (warning,) = [record.message for record in caplog.records if "takes no more lines" in record.message]
    assert warning.startswith("train: mlflow takes no more lines (")


def test_wandb_writes_the_run_of_the_product(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    place = Place(str(tmp_path / "0123abcd"))
    (tracker,) = trackers.open_trackers(("wandb",), place, {"lr": 0.1})
    tracker.line({"step": 3, "loss": 1.5})
    tracker.close()
    (written,) = (tmp_path / "0123abcd" / "wandb").glob("offline-run-*-0123abcd/*.wandb")
    deadline = time.monotonic() + 60  # a process of wandb's own writes, on a busy machine after `finish` has given up
    while b"loss" not in written.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"loss" in written.read_bytes()


def test_a_tracker_that_is_not_installed_is_told_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (problem,) = check(tiny.config(tmp_path, trackers=["mlflow"]), tiny.cluster({"CPU": 2}))
    assert (
        problem == "train.trackers=mlflow: the package mlflow is not installed; pip install 'biomedclip-ray[trackers]'"
    )


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(Exception, match="train.trackers"):
        tiny.config(tmp_path, trackers=["comet"])
