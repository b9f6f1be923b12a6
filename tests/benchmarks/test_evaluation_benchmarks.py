"""The benchmarks of evaluation still run: each in its small form, whose ratios of speed say nothing."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.benchmarks.test_benchmarks import FOLDER, ratios, run

sys.path.insert(0, str(FOLDER))
from bench import CASES

QUICK = {case.script: shlex.split(case.quick) for case in CASES}


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="needs the extra `benchmark`")
def test_ranks_beside_sgemm_and_faiss() -> None:
    done = run("ranks.py", *QUICK["ranks.py"])
    speed = {"ranks_2000_of_sgemm", "ranks_4000_of_sgemm", "ranks_vs_faiss", "ranks_growth_off_2"}
    assert ratios(done) == speed | {"ranks_worker_gb", "ranks_driver_gb"}
    assert "growth exponent" in done.stdout and "faiss-cpu" in done.stdout


def test_ranks_without_faiss_say_what_to_do() -> None:
    done = run("ranks.py", "--sizes", "1000", "--rounds", "1", "--width", "32", "--grown", "0", "--skip", "memory")
    assert ratios(done) == {"ranks_1000_of_sgemm"}


def test_intervals_are_simulated_and_draws_beside_the_revision_before() -> None:
    if not (Path(FOLDER).parent / ".git").exists():
        pytest.skip("no history here")
    done = run("intervals.py", *QUICK["intervals.py"])
    coverages = {f"coverage_{name}" for name in ("least", "most", "mean", "paired")}
    assert ratios(done) == coverages | {"draws_vs_before"}
    cells = [
        float(cell) for line in re.findall(r"^\| \d+ \|.*$", done.stdout, flags=re.M) for cell in line.split("|")[2:-1]
    ]
    assert len(cells) == 35 and min(cells) > 80


def test_near_copies_are_those_of_brute_force() -> None:
    done = run("leaks.py", *QUICK["leaks.py"])
    assert ratios(done) == {"leaks_vs_before"}
    assert "equal: True" in done.stdout


def test_the_encoders_forward_pass_beside_plain_open_clip() -> None:
    names = {"kept_images_vs_plain", "packed_images_vs_plain", "packed_texts_vs_plain", "streams_images_vs_threads"}
    assert ratios(run("forward.py", *QUICK["forward.py"])) == names


def test_features_beside_a_loop() -> None:
    assert ratios(run("features.py", *QUICK["features.py"])) == {"features_vs_loop"}
