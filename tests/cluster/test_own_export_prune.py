"""The command line on own pairs: alone, beside PubMed Central's, exported for others; and what it
removes when told to.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from biomedclip_ray.sample import make_bucket

REPO = Path(__file__).resolve().parents[2]
# no Ray of another test, and no account's settings: own pairs alone must run without any network
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}


def _pictures(n: int) -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    for _ in range(n):
        sink = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (64, 80, 3), np.uint8)).save(sink, "JPEG")
        found.append(sink.getvalue())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workflow")
    make_bucket(folder / "bucket", n_articles=12, seed=2)
    (folder / "own").mkdir()
    table = {"image": _pictures(40), "text": [f"Chest radiograph number {n}" for n in range(40)]}
    pq.write_table(pa.table(table), folder / "own" / "a.parquet", row_group_size=10)
    (folder / "config.yaml").write_text(
        f"root: {folder / 'root'}\nsource: {{uri: {folder / 'bucket'}, articles_per_part: 6}}\n"
        f"own: {{uri: {folder / 'own'}, pairs_per_part: 20}}\n"
    )
    return folder


def _workflow(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "workflows/biomedclip.py", str(folder / "config.yaml"), *arguments]
    return subprocess.run(command, cwd=REPO, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)


def _stages(root: Path) -> list[tuple[str, str]]:
    return [(stage["name"], stage["state"]) for stage in json.loads((root / "run.json").read_text())["stages"]]


def _products(root: Path) -> set[str]:
    return {path.parent.relative_to(root).as_posix() for path in root.glob("*/*/_MANIFEST.json")}


def test_own_pairs_beside_pmc_are_exported_and_what_they_replace_is_pruned(folder: Path, tmp_path: Path) -> None:
    out, root = tmp_path / "out", folder / "root"
    done = _workflow(folder, "--export", "datasets", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert [name for name, _ in _stages(root)] == [
        "catalog",
        "ingest",
        "preprocess",
        "preprocess",
        "preprocess",
        "curate",
    ]
    exported = pd.concat(pd.read_parquet(path) for path in (out / "data").glob("*.parquet"))
    own = exported["pair_id"].str.startswith("own-")
    assert own.sum() == 40
    assert (~own).sum() == 18  # of the 19 whole images in the bucket one is there twice
    assert f"train {(exported['split'] == 'train').sum()}" in done.stdout
    assert "own data (own)" in (out / "README.md").read_text()

    first = _products(root)
    other = _workflow(folder, "curate.select.min_text_chars=20", "--until", "curate")
    assert other.returncode == 0, other.stderr
    assert {state for name, state in _stages(root) if name != "curate"} == {"skipped"}
    (replaced,) = (name for name in first if name.startswith("curate/"))
    shown = _workflow(folder, "curate.select.min_text_chars=20", "--prune")
    assert replaced in shown.stdout
    assert "Nothing was removed" in shown.stdout
    assert len(_products(root)) == len(first) + 1
    kept = _workflow(folder, "--prune", "--yes")  # this configuration still uses it
    assert "is used" in kept.stdout
    gone = _workflow(folder, "curate.select.min_text_chars=20", "--prune", "--yes")
    assert gone.returncode == 0, gone.stderr
    assert "Removed 1 products" in gone.stdout
    assert len(_products(root)) == len(first)
    assert replaced not in _products(root)


@pytest.mark.slow
def test_own_pairs_alone_need_no_pubmed_central(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    alone = ("own.alone=true", f"root={root}", "source.uri=/nowhere")
    done = _workflow(folder, *alone, "--until", "curate")
    assert done.returncode == 0, done.stderr
    assert _stages(root) == [("preprocess", "ran"), ("curate", "ran")]
    assert json.loads((root / "run.json").read_text())["inventories"] == {}
    again = _workflow(folder, *alone, "--export", "webdataset", "--out", str(tmp_path / "out"))
    assert again.returncode == 0, again.stderr
    assert {state for _, state in _stages(root)} == {"skipped"}
    assert sorted(path.name for path in (tmp_path / "out").glob("train-*.tar")) == ["train-000000.tar"]


def test_own_pairs_that_are_not_there_are_one_line_and_exit_2(folder: Path, tmp_path: Path) -> None:
    done = _workflow(folder, f"own.uri={tmp_path}/absent", f"root={tmp_path}/root")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: own.uri={tmp_path}/absent: no such folder, or nothing in it"]
    assert not (tmp_path / "root").exists()
