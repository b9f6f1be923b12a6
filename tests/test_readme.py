"""What the README says exists: files, targets, flags, configuration keys, and Python that compiles."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from biomedclip_ray.config import STAGES, load

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "cluster" / "README.md").read_text()


@pytest.mark.parametrize("text", [README, GUIDE], ids=["README.md", "cluster/README.md"])
def test_every_file_that_is_named_is_there(text: str) -> None:
    named = set(re.findall(r"(?<![\w/])(?:workflows|cluster|biomedclip_ray)/[\w./]+\.(?:py|yaml|md)\b", text))
    assert named
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_every_config_stands_in_the_table() -> None:
    there = {path.name for path in (ROOT / "workflows/configs").glob("*.yaml")}
    assert set(re.findall(r"^\| `(\w+\.yaml)`", README, flags=re.M)) == there


def test_every_make_target_that_is_named_exists_and_there_are_at_most_nine() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert len(targets) <= 9
    assert set(re.findall(r"`make ([a-z-]+)`", README + GUIDE)) <= targets


def test_every_flag_of_the_workflow_is_explained_and_none_is_invented() -> None:
    shown = subprocess.run(
        [sys.executable, "workflows/biomedclip.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    flags = set(re.findall(r"(?<![\w-])--[a-z-]+", shown)) - {"--help", "--working-dir"}
    rows = "\n".join(line for line in README.splitlines() if line.startswith("| `--"))
    assert set(re.findall(r"--[a-z-]+", rows)) == flags


def test_every_override_that_is_shown_is_accepted() -> None:
    found = re.findall(r"(?<![\w.])((?:root|[a-z]+\.[a-z_.]+)=[^\s`]+)", README)
    assert len(found) >= 6
    config = load(ROOT / "workflows/configs/sample.yaml", found)
    assert config.train.lr == 3e-4
    assert config.preprocess.select.text == ("fundus", "retina")


def test_the_stage_table_has_every_stage_in_order() -> None:
    rows = re.findall(r"^\| (\w+) \|", README, flags=re.M)
    assert tuple(row for row in rows if row in STAGES) == STAGES


def test_every_python_example_compiles() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(blocks) >= 3
    for block in blocks:
        compile(block, "README.md", "exec")


def test_the_acknowledgement_that_the_library_asks_for_is_there() -> None:
    text = " ".join(README.split())
    assert "courtesy of the U.S. National Library of Medicine" in text
    assert "does not show the most current and accurate data" in text


def test_the_upload_of_a_job_leaves_out_what_is_big_or_built() -> None:
    ignored = set((ROOT / ".rayignore").read_text().split())
    assert {".git/", ".venv/", ".demo/", "tests/", "build/", "dist/"} <= ignored


def test_ci_runs_make_test_and_fails_with_it() -> None:
    text = (ROOT / ".ci/run").read_text()
    assert "set -euo pipefail" in text
    assert "make test" in text
