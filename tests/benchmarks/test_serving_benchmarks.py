"""The benchmarks of embedding and search still run: each in its smallest form, whose ratios say nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.benchmarks.test_benchmarks import ratios, run


@pytest.mark.slow
def test_the_embed_stage_is_measured_beside_its_forward_passes(corpus: Path) -> None:
    done = run("embed.py", "--tower", "small", "--pairs", "2", "--turns", "1", "--data", str(corpus.parent))
    assert ratios(done) == {"embed_vs_forward", "embed_with_index_vs_forward"}


@pytest.mark.slow
def test_search_is_measured_at_several_sizes_with_and_without_filters() -> None:
    done = run("search.py", "--only", "search", "--rows", "3000", "6000", "--width", "64", "--skip", "faiss")
    assert ratios(done) == {"search_15m_ms"}
    assert "0.01 by chance: recall" in done.stdout


@pytest.mark.slow
def test_search_is_measured_beside_faiss_with_and_without_filters() -> None:
    pytest.importorskip("faiss")
    done = run("search.py", "--only", "search", "--rows", "2000", "4000", "--width", "32")
    assert ratios(done) >= {
        "search_vs_faiss",
        "lance_floor_vs_faiss",
        "search_15m_ms",
        "search_filtered_10_per_mille_vs_faiss",
    }
    assert all(float(recall) >= 0.95 for recall in re.findall(r"[a-z]: recall ([\d.]+)", done.stdout))
