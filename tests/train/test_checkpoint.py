"""What a run goes on from when a kill or a crash has left its records or its newest checkpoint in pieces."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

sys.path.insert(0, str(Path(__file__).parent))
from test_step import learner

from biomedclip_ray.store.place import Place
from biomedclip_ray.train import checkpoint

STEPS = (8, 4, 12)  # as Ray has them: from the worst score to the best


def record(steps: tuple[int, ...], pending: tuple[int, ...] = ()) -> bytes:
    """Ray's snapshot of a run with checkpoints at these steps."""

    def result(step: int) -> dict[str, Any]:
        return {"version": 0, "checkpoint_dir_name": checkpoint.folder_name(step), "metrics": {"step": step}}

    return json.dumps(
        {
            "ray_version": ray.__version__,
            "checkpoint_results": [result(step) for step in steps],
            "checkpoint_report_indices": [step // 4 for step in steps],
            "latest_checkpoint_result": result(max(steps)),
            "pending_training_results": [result(step) for step in pending],
            "pending_validation_specs": [True for _ in pending],
            "current_report_index": max(steps) // 4,
            "validated_checkpoint_dir_names": [checkpoint.folder_name(step) for step in steps if step not in pending],
            "timed_out_validation_checkpoint_dir_names": [],
            "failed_validation_checkpoint_dir_names": [],
        }
    ).encode()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("saved")
    for step in STEPS:
        folder = root / checkpoint.RUN / checkpoint.folder_name(step)
        folder.mkdir(parents=True)
        checkpoint.save(folder, learner(), {"step": step}, 0)
    (root / checkpoint.RUN / "checkpoint_manager_snapshot.json").write_bytes(record(STEPS, pending=(12,)))
    return root


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "product")
    return tmp_path / "product"


def _snapshot(run: Path) -> Path:
    return run / checkpoint.RUN / "checkpoint_manager_snapshot.json"


def test_what_is_whole_is_left_as_it_is(run: Path) -> None:
    before = _snapshot(run).read_bytes()
    checkpoint.mend(Place(str(run)))
    assert _snapshot(run).read_bytes() == before
    assert checkpoint.steps_done(Place(str(run))) == 12


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_newest_checkpoint_that_cannot_be_opened_is_passed_over(run: Path, name: str, damage: str) -> None:
    file = run / checkpoint.RUN / checkpoint.folder_name(12) / name
    file.write_bytes(file.read_bytes()[:-5]) if damage == "cut" else file.unlink()
    place = Place(str(run))
    checkpoint.mend(place)
    assert checkpoint.steps_done(place) == 8
    assert [checkpoint.step_of(kept.path) for kept in checkpoint.kept(place)] == [8, 4]
    state = checkpoint.restore(checkpoint.newest(place), learner())  # type: ignore[arg-type]
    assert state == {"step": 8}


def test_a_cut_record_is_replaced_by_what_the_one_before_names_and_is_there(run: Path) -> None:
    place = Place(str(run))
    (run / checkpoint.RUN / "snapshot_before.json").write_bytes(record((16, *STEPS), pending=(16, 12)))
    _snapshot(run).write_bytes(record(STEPS)[:100])
    checkpoint.mend(place)
    assert checkpoint.steps_done(place) == 12
    mended = json.loads(_snapshot(run).read_bytes())
    assert [one["metrics"]["step"] for one in mended["pending_training_results"]] == [12]


def test_where_nothing_is_whole_the_run_begins_anew(run: Path) -> None:
    for step in STEPS:
        shutil.rmtree(run / checkpoint.RUN / checkpoint.folder_name(step))
    place = Place(str(run))
    checkpoint.mend(place)
    assert checkpoint.steps_done(place) == 0
    assert not _snapshot(run).exists()
    checkpoint.mend(place)


def test_left_over_shards_do_not_decide_how_a_whole_checkpoint_is_read(run: Path) -> None:
    newest = run / checkpoint.RUN / checkpoint.folder_name(12)
    (newest / "shards").mkdir()
    (newest / "shards" / ".metadata").write_bytes(b"of another form")
    place = Place(str(run))
    checkpoint.mend(place)
    assert checkpoint.steps_done(place) == 12
    assert checkpoint.restore(checkpoint.newest(place), learner())["step"] == 12  # type: ignore[arg-type]
    one = learner()
    assert checkpoint.weights(newest, one.model).keys() == one.model.state_dict().keys()
