"""What the driver tells is kept until the next round, and ends with what it is about."""

from __future__ import annotations

import pytest

from biomedclip_ray.run import telemetry


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_told", {})


def test_a_stage_that_has_ended_is_told_no_more_but_its_units_are() -> None:
    telemetry.tell("stage_running", 1, stage="ingest")
    telemetry.tell("parts_left", 3, stage="ingest")
    telemetry.tell("parts_left", 9, stage="embed")
    telemetry.tell("units", 40, stage="ingest", unit="article", outcome="kept")
    telemetry.forget(stage="ingest")
    assert telemetry._told == {
        ("parts_left", (("stage", "embed"),)): 9.0,
        ("units", (("outcome", "kept"), ("stage", "ingest"), ("unit", "article"))): 40.0,
    }


def test_a_label_that_the_gauge_does_not_have_is_a_mistake_at_once() -> None:
    with pytest.raises(ValueError, match="parts_left has the labels"):
        telemetry.tell("parts_left", 3)
