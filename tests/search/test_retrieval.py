"""Retrieval through an index: its figures are those of the rows it finds, and its own recall that of brute force."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from biomedclip_ray.config import ConfigError
from biomedclip_ray.search.index import Index
from biomedclip_ray.search.retrieval import through_index
from tests.search.test_index import IMAGE, ROWS, TEXT, build

TEST = np.arange(0, ROWS, 10)
SIDES = {"text_to_image": (TEXT, IMAGE), "image_to_text": (IMAGE, TEXT)}


@pytest.fixture(scope="module", params=[10_000, 100], ids=["exact", "approximate"])
def index(request, tmp_path_factory) -> Index:
    return build(tmp_path_factory.mktemp("index"), request.param)


def test_the_index_is_measured_beside_an_exact_search(index):
    found = through_index(index, "test", 50, 0, queries=150)
    assert (found["rows"], found["queries"], found["bundle"]) == (ROWS, 150, "b1")
    asked = np.sort(np.random.default_rng(0).permutation(TEST)[:150])
    for direction, (queries, candidates) in SIDES.items():
        scores = queries[asked].astype(float) @ candidates.T.astype(float)
        own = scores[np.arange(150), asked][:, None]
        ranks = (scores > own + 1e-12).sum(axis=1)
        for k in (1, 5, 10, 50, 200):
            assert found[direction]["exact"][f"recall@{k}"]["value"] == pytest.approx((ranks < k).mean(), abs=1e-12)
        best = np.argsort(-scores, axis=1)[:, :10]
        hits = [
            len({hit.pair_id for hit in index.search(queries[row], 10, column_of(direction))} & names(best[n]))
            for n, row in enumerate(asked)
        ]
        own_recall = found[direction]["index"]
        assert own_recall["value"] == pytest.approx(np.mean(hits) / 10, abs=0.02)
        assert own_recall["low"] <= own_recall["value"] <= own_recall["high"]
        near = found[direction]["approximate"]["recall@10"]
        assert near["low"] <= near["value"] <= found[direction]["exact"]["recall@10"]["value"] + 0.02
        assert near["chance"] == 10 / ROWS
        if index.settings.exact:
            assert own_recall["value"] == 1
            assert near["value"] == found[direction]["exact"]["recall@10"]["value"]
        else:
            assert own_recall["value"] > 0.9


def column_of(direction: str) -> str:
    return "image_vector" if direction == "text_to_image" else "text_vector"


def names(rows: np.ndarray) -> set[str]:
    return {f"PMC{row}.1/F1#0" for row in rows}


def test_a_split_that_is_not_in_the_index_says_so(index):
    with pytest.raises(ConfigError, match=r"the index holds no pair with split = 'validation'; embed\.splits decides"):
        through_index(index, "validation", 10, 0)


def test_the_command_prints_both_and_the_indexs_own_recall(index, tmp_path, capsys):
    file = Path(__file__).resolve().parents[2] / "workflows" / "evaluate.py"
    spec = importlib.util.spec_from_file_location("evaluate_workflow", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(["--index", index.place.uri, "--draws", "20", "--out", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"400 pairs of the test split among {ROWS:,} rows ({index.settings.kind})" in shown
    assert "text to image: of the ten nearest the index finds" in shown
    found = json.loads((tmp_path / "retrieval_through_index.json").read_text())
    assert set(found["image_to_text"]["approximate"]) == {f"recall@{k}" for k in (1, 5, 10, 50, 200)}
    with pytest.raises(SystemExit):
        module.main(["--index", index.place.uri, "--bundles", "b"])
    assert "--index and --known go without --bundles and --sets" in capsys.readouterr().err
