"""The benchmarks of training still run: each in its smallest form, whose ratios say nothing, so that only a crash fails
it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment.pop("RAY_ADDRESS", None)  # the session's cluster is not theirs
    command = [sys.executable, str(FOLDER / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)


def ratios(done: subprocess.CompletedProcess[str]) -> set[str]:
    assert done.returncode in (0, 1), done.stderr[-2000:]
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return set(re.findall(r"^(\w+) ratio=\d", done.stdout, flags=re.M))


@pytest.mark.slow
def test_memory_of_the_loss_is_measured_and_is_a_fraction_of_the_whole_matrix():
    done = run("loss_memory.py", "--batches", "4096")
    assert ratios(done) == {"loss_memory_vs_open_clip"}
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\| 4,096 \| 512 \| [\d,]+ \| [\d,]+ \| [\d,]+ \|$", done.stdout, flags=re.M)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_gpu_benchmark_says_so_in_one_line():
    done = run("train_gpu.py")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "no CUDA device" in done.stderr


@pytest.mark.slow  # two minutes, which go into compiling
def test_the_gpu_benchmark_runs_every_case_on_a_cpu():
    done = run("train_gpu.py", "--device", "cpu", "--tiny")
    assert ratios(done) == {"gpu_step_vs_open_clip"}
    assert len(re.findall(r"pairs/s   MFU", done.stdout)) == 9
    assert "does not fit" not in done.stdout


@pytest.mark.slow
def test_parity_with_open_clip_holds_over_the_first_steps(corpus: Path):
    done = run("train_vs_open_clip.py", "--quick", "--only", "parity", "--data", str(corpus.parent))
    assert ratios(done) == {"loss_parity"}
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_throughput_beside_open_clip_and_of_the_feed_is_measured(corpus: Path):
    data = ("--data", str(corpus.parent))
    steps = run("train_vs_open_clip.py", "--quick", "--only", "throughput", "--rounds", "1", "--steps", "1", *data)
    names = {"step_padded_vs_open_clip", "step_natural_of_ceiling", "text_tower_natural_vs_padded"}
    assert ratios(steps) == names
    fed = run("feed.py", "--pairs", "4096", "--steps", "6", *data)
    assert ratios(fed) == {"feed_vs_functions"}
    assert "wait for data" in fed.stdout
