"""REFERENCE.md is what the code says, and every key says what it is for."""

from __future__ import annotations

from pathlib import Path

from biomedclip_ray.config.reference import reference

FILE = Path(__file__).resolve().parents[1] / "REFERENCE.md"


def test_the_reference_is_what_the_code_says() -> None:
    assert FILE.read_text() == reference(), "stale: python -m biomedclip_ray.config.reference > REFERENCE.md"


def test_every_key_says_what_it_is_for() -> None:
    keys = [line for line in reference().split("## Columns")[0].splitlines() if line.startswith("| `")]
    assert [line for line in keys if line.endswith("|  |")] == []
