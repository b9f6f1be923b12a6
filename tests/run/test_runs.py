"""The record of each run says how it ended, and no later one writes over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from biomedclip_ray.run.record import load_run
from biomedclip_ray.run.runs import RUN_ID, RunRecord, find
from biomedclip_ray.store.place import StorageError


def test_a_run_is_told_from_its_begin_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_ID, "one")
    record = RunRecord(str(tmp_path), ["config.yaml", "--until", "curate"])
    assert find(str(tmp_path), "one") is None
    record.begin()
    begun = find(str(tmp_path), "one")
    assert begun is not None
    assert (begun["state"], begun["exit_code"]) == ("running", None)
    record.stages = [{"name": "catalog", "state": "ran"}]
    record.end(3, ["unfinished: too much was lost"])
    ended = find(str(tmp_path), "one")
    assert ended is not None
    assert (ended["state"], ended["exit_code"], ended["said"]) == ("unfinished", 3, ["unfinished: too much was lost"])
    assert ended["stages"] == [{"name": "catalog", "state": "ran"}]
    assert ended["command"] == ["config.yaml", "--until", "curate"]


@pytest.mark.parametrize("given", ["notice.webhook=https://h/s3cret", "notice={webhook: https://h/s3cret}"])
def test_a_webhook_on_the_command_line_stands_in_no_record(tmp_path: Path, given: str) -> None:
    record = RunRecord(str(tmp_path), ["config.yaml", given, "--until", "curate"])
    record.begin()
    text = (tmp_path / "runs" / f"{record.id}.json").read_text()
    assert "s3cret" not in text
    assert '"config.yaml"' in text and '"curate"' in text


def test_a_second_try_of_a_submission_has_a_file_of_its_own_and_is_what_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_ID, "one")
    for code in (1, 0):
        record = RunRecord(str(tmp_path), [])
        record.begin()
        record.end(code, [])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["one-2.json", "one.json"]
    found = find(str(tmp_path), "one")
    assert found is not None
    assert (found["id"], found["state"]) == ("one-2", "done")


def test_a_refused_run_leaves_a_record_only_where_somebody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(RUN_ID, raising=False)
    RunRecord(str(tmp_path), []).end(2, ["error: no"])
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(RUN_ID, "asked")
    RunRecord(str(tmp_path), []).end(2, ["error: no"])
    found = find(str(tmp_path), "asked")
    assert found is not None
    assert (found["state"], found["exit_code"], found["said"]) == ("refused", 2, ["error: no"])


def test_a_root_that_cannot_be_read_is_not_taken_for_one_without_the_run() -> None:
    with pytest.raises(StorageError, match="cannot be read from here"):
        find("/proc/self/mem", "one")


@pytest.mark.parametrize("content", ["{", "[]", '{"id": "a"}', '"a"'])
def test_a_damaged_record_is_named_with_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.json").write_text(content)
    (tmp_path / "run.json").write_text(content)
    said = r" is damaged .*; put a copy back, or remove it: products stay"
    with pytest.raises(StorageError, match=rf"runs/a\.json{said}"):
        find(str(tmp_path), "a")
    with pytest.raises(StorageError, match=rf"/run\.json{said}"):
        load_run(str(tmp_path))
