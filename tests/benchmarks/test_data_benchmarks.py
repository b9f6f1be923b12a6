"""The benchmarks of the data side still run: each in a small form, whose ratios of speed say nothing, so that only a
crash fails it.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from biomedclip_ray.figures.panels import WEIGHTS
from tests.benchmarks.test_benchmarks import ratios, run


def _data(corpus: Path) -> tuple[str, str]:
    return "--data", str(corpus.parent)


def test_pictures_beside_pillow(corpus: Path) -> None:
    done = run("images.py", "--rounds", "1", "--every", "25", *_data(corpus))
    assert ratios(done) == {"images_224_vs_pillow", "images_384_vs_pillow"}
    assert len(re.findall(r"mean \d\d\.\d dB", done.stdout)) == 2


def test_deep_tiffs_beside_tifffile() -> None:
    done = run("tiff.py", "--rounds", "1", "--side", "128")
    assert ratios(done) == {"tiff_vs_tifffile"}
    assert done.stdout.count("pixels within 0") + done.stdout.count("pixels within 1") == 9


def test_articles_beside_lxml(corpus: Path) -> None:
    assert ratios(run("jats.py", "--quick", "--skip", "pubmed_parser", *_data(corpus))) == {"jats_full_vs_lxml"}


@pytest.mark.parametrize(("script", "package"), [("jats.py", "pubmed_parser"), ("ingest.py", "daft")])
def test_what_is_compared_with_must_be_there_or_be_left_out(script: str, package: str) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    done = run(script)
    assert done.returncode == 2
    assert done.stderr == (
        f"{package} is not installed: make bench installs it, or leave it out with --skip {package}\n"
    )


@pytest.mark.skipif(importlib.util.find_spec("pubmed_parser") is None, reason="needs the extra `benchmark`")
def test_captions_beside_pubmed_parser(corpus: Path) -> None:
    done = run("jats.py", "--quick", *_data(corpus))
    assert ratios(done) == {"jats_full_vs_lxml", "jats_captions_vs_pubmed_parser"}
    assert re.search(r"of \d+ captions \d+ lost and \d+ not as the XML has them", done.stdout)


def test_an_inventory_is_dealt_out_within_its_memory() -> None:
    done = run("inventory.py", "--rows", "20000")
    assert ratios(done) == {"inventory_memory"}
    assert done.returncode == 0, done.stdout


def test_near_hashes_that_were_planted_are_found() -> None:
    done = run("near.py", "--most", "20000")
    assert ratios(done) == {"near_growth"}
    assert re.findall(r"found=([\d.]+)", done.stdout) == ["1.00000"] * 3


def test_panels_and_subcaptions_are_scored(corpus: Path, tmp_path: Path) -> None:
    done = run("panels.py", "--every", "6", "--report", str(tmp_path / "report.html"), *_data(corpus))
    assert done.returncode in (0, 1), done.stderr[-2000:]
    merits = re.findall(r"^(corpus|sample) (\w+) ratio=[\d.]+", done.stdout, flags=re.M)
    four = ["compound_or_single", "panels_f1_50", "panels_f1_75", "labels"]
    assert sorted(merits) == sorted(
        [*[(of, merit) for of in ("corpus", "sample") for merit in four], ("corpus", "subcaptions_f1")]
    )
    report = (tmp_path / "report.html").read_text()
    assert "data:image/" in report  # what went wrong, as images
    assert report.count("<tr>") > len(merits)


def test_compounds_are_drawn_on_real_layouts_and_ways_to_cut_weighed(corpus: Path, tmp_path: Path) -> None:
    done = run("panels_layouts.py", "--figures", "12", "--fit", "--fonts", str(tmp_path), *_data(corpus))
    merits = dict(re.findall(r"^layouts (\w+) ratio=([\d.]+)", done.stdout, flags=re.M))
    assert set(merits) == {"compound_or_single", "panels_f1_50", "panels_f1_75", "labels"}
    assert float(merits["panels_f1_50"]) > 0.7
    first, second = done.stdout.splitlines()[:2]
    assert first == "letters in DejaVuSans, DejaVuSans-Bold, DejaVuSerif, DejaVuSerif-Bold"
    assert len(re.findall(r"-?\d\.\d\d", second.split(" - ")[0])) == len(WEIGHTS)


def test_kinds_reach_their_bound(corpus: Path) -> None:
    done = run("kinds.py", *_data(corpus))
    assert ratios(done) == {"sample_kinds", "sample_kinds_by_image_alone", "corpus_pathways_are_diagrams"}
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_pipeline_beside_two_processes_and_its_memory() -> None:
    done = run("ingest.py", "--articles", "12", "--pairs", "1", "--memory", "6", "12", "--skip", "daft")
    assert ratios(done) == {"ingest_memory", "ingest_vs_two_processes"}


def test_closing_a_stage_behind_a_slow_store_is_measured() -> None:
    done = run("driver.py", "--parts", "60", "--delay-ms", "5")
    assert ratios(done) == {f"ms_a_part_{step}" for step in ("finish", "curate", "leaks", "evaluate", "embed")}


def test_the_memory_of_curates_tasks_is_measured() -> None:
    done = run("curate.py", "--pairs", "9000")
    assert ratios(done) == {"curate_25m_gb"}
    assert set(re.findall(r" 9,\d+ pairs: (\w+) ", done.stdout)) >= {"number", "search", "look_at", "compare", "decide"}


@pytest.mark.slow  # a Ray for each number of nodes
def test_many_nodes_on_one_driver_are_measured() -> None:
    done = run("scale.py", "--nodes", "2", "--parts", "30", "--only", "catalog", "--rate", "12")
    assert ratios(done) == {"efficiency_2_catalog"}
    assert len(re.findall(r"the driver [\d.]+ ms a part", done.stdout)) == 2


@pytest.mark.slow  # the whole workflow
def test_the_plan_is_held_to_what_a_run_took() -> None:
    done = run("plan.py", "--articles", "60")
    assert ratios(done) == {"plan_whole"}
    assert len(re.findall(r"planned [\d.]+ s .* took [\d.]+ s", done.stdout)) == 8


@pytest.mark.slow  # half a minute until the processes are up, whatever the seconds
def test_many_processes_at_a_source_with_a_limit_are_measured() -> None:
    done = run("pacing.py", "--limits", "200", "--nodes", "2", "--seconds", "4")
    assert ratios(done) == {"answered_of_limit", "lost"}


def test_one_command_runs_what_is_asked_for_and_ends_with_a_table() -> None:
    done = run("bench.py", "--quick", "--only", "inventory.py", "train_gpu.py")
    assert done.returncode == 0, done.stdout
    table = done.stdout.split("benchmark ")[-1]
    assert re.search(r"inventory.py +inventory_memory +[\d.]+ +>= 1.00 +held", table)
    assert re.search(r"train_gpu.py +no GPU here +open_clip_torch 3\.3", table)
