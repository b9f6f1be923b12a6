"""workflows/evaluate.py: bundles and sets in, tables, files and a page out, without Ray, corpus or training."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from tests.evaluate.test_fusion import quizzes

FILE = Path(__file__).resolve().parents[2] / "workflows" / "evaluate.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("evaluate_workflow", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_two_bundles_on_a_set_and_again_with_another_seed(main, bundles, make_set, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["--bundles", *map(str, bundles), "--sets", str(make_set()), "--out", str(out), "--draws", "50"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "clip0 on tiny" in shown and "Bundles compared, row by row" in shown
    for title in ("Without training", "All tasks", "zero shot: truth", "linear probe: truth", "with few labels"):
        assert title in shown
    found = json.loads((out / "evaluation.json").read_text())
    assert found["encoded"] == {name: {"images": 60, "texts": 8} for name in ("clip0", "clip1")}
    assert (out / "table.csv").read_text().startswith("set,task,metric,clip0 value,clip0 low")
    assert r"\begin{tabular}" in (out / "table.tex").read_text()
    page = (out / "report.html").read_text()
    assert "clip0 against clip1" in page and "data:image/jpeg;base64," in page
    assert main([*command, "--seed", "1"]) == 0
    again = json.loads((out / "evaluation.json").read_text())
    assert again["encoded"] == {name: {"images": 0, "texts": 0} for name in ("clip0", "clip1")}
    value = again["bundles"]["clip0"]["tiny"]["zero_shot"]["accuracy"]["value"]
    assert value == found["bundles"]["clip0"]["tiny"]["zero_shot"]["accuracy"]["value"]
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


@pytest.mark.slow
def test_a_first_table_of_three_real_sets_half_a_minute_after_encoding(main, bundles, eval_sets, tmp_path, caplog):
    sets = [str(eval_sets / name) for name in ("bccd_cells", "pneumonia_mnist", "vqa_rad")]
    command = ["--bundles", *map(str, bundles), "--sets", *sets, "--out", str(tmp_path / "out"), "--draws", "1000"]
    with caplog.at_level("INFO", logger="evaluate"):
        assert main(command) == 0
    (told,) = re.findall(r"first table after ([\d.]+) s", caplog.text)
    assert float(told) <= 30
    assert main([*command, "--seed", "1"]) == 0
    again = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert again["encoded"] == {name: {"images": 0, "texts": 0} for name in ("clip0", "clip1")}
    disjoint = again["bundles"]["clip0"]["vqa_rad"]["vqa"]["disjoint"]["all"]["model"]["exact"]
    assert disjoint["low"] < disjoint["value"] < disjoint["high"]


def test_a_fusion_head_stands_in_table_and_page(main, bundles, tmp_path, capsys):
    folder = quizzes(tmp_path / "halves", 18)
    command = ["--bundles", str(bundles[0]), "--sets", str(folder), "--out", str(tmp_path / "out"), "--draws", "20"]
    assert main([*command, "--fusion", "1"]) == 0
    shown = capsys.readouterr().out
    assert "vqa fusion, disjoint" in shown and "all, model less question only: exact match, paired" in shown
    page = (tmp_path / "out" / "report.html").read_text()
    assert "disjoint, by a fusion head" in page and "0 of 6 test images stand in train, counted by content" in page


def test_a_bundle_named_twice_differs_from_itself_by_exactly_nothing(main, bundles, make_set, tmp_path):
    command = ["--bundles", *[str(bundles[0])] * 2, "--sets", str(make_set()), "--out", str(tmp_path / "out")]
    assert main([*command, "--draws", "20"]) == 0
    (pair,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["comparison"]
    assert (pair["first"], pair["second"]) == ("clip0 (1)", "clip0 (2)")
    for entry in pair["sets"]:
        for figure in entry["metrics"].values():
            assert (figure["value"], figure["low"], figure["high"]) == (0, 0, 0)


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_bad_set_ends_with_2_before_a_bundle_is_read(options, main, make_set, tmp_path, capsys):
    folder = make_set()
    (folder / "dataset.json").write_text("{")
    assert main(["--bundles", "nowhere", "--sets", str(folder), "--out", str(tmp_path / "out"), *options]) == 2
    assert "error: evaluate.sets:" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_known_sets_are_told_with_what_to_put_where(main, capsys):
    assert main(["--known", "PCAM"]) == 0
    first, fetch, prompts = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "PCAM: neoplastic, on the list of BiomedCLIP, medpmc-clip-eval, UniMed-CLIP; 2 classes, train"
    )
    assert fetch.startswith(
        "    get it from https://github.com/basveeling/pcam and put test.h5 with the arrays x and y"
    )
    assert prompts.startswith("    prompts: constants.py of https://github.com/mbzuai-oryx/UniMed-CLIP")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--draws=0", "--draws 0: Input should be greater than 0"),
        ("--seed=-1", "--seed -1: "),
        ("--fusion=-1", "--fusion"),
    ],
)
def test_an_option_out_of_bounds_ends_with_2_before_a_set_is_read(option, message, main, tmp_path, capsys):
    command = ["--bundles", "nowhere", "--sets", "nowhere", "--out", str(tmp_path / "out"), option, "--dry-run"]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
