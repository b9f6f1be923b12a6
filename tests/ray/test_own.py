"""One's own pairs, alone and beside PubMed Central's: the same checks, splits by patient, one ledger,
nothing copied.
"""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from biomedclip_ray.config import Config, ConfigError, parse
from biomedclip_ray.corpus.curate import curate
from biomedclip_ray.corpus.own import own_pairs, side_by_side
from biomedclip_ray.figures.preprocess import preprocess
from biomedclip_ray.images.image import decode
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.pmc.ingest import ingest
from biomedclip_ray.run.stage import Outcome
from biomedclip_ray.sample import make_bucket
from biomedclip_ray.schema import PAIRS
from biomedclip_ray.sources.inventory import resolve_inventory
from biomedclip_ray.sources.own_files import find_files
from biomedclip_ray.store.product import Product
from biomedclip_ray.train.rows import find_rows
from tests.conftest import S3

pytestmark = pytest.mark.usefixtures("ray_cluster")


def _png(seed: int, side: int = 64) -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((side, side), 40 + seed).convert("RGB").save(sink, "PNG")
    return sink.getvalue()


def _table(n: int) -> dict[str, list[object]]:
    """`n` good rows of n/2 patients with two images each."""
    return {
        "image": [_png(row) for row in range(n)],
        "caption": [f"Radiograph of patient {row // 2}, view {row % 2}" for row in range(n)],
        "id": [f"scan.{row}" for row in range(n)],
        "patient": [f"patient {row // 2}" for row in range(n)],
        "split": [None] * n,
        "license": ["CC BY"] * n,
    }


def _config(root: Path, uri: Path | str, **own: object) -> Config:
    return parse({"root": str(root), "own": {"uri": str(uri), "alone": True, "pairs_per_part": 16, **own}}, "test")


def _run(config: Config) -> Outcome:
    assert config.own.uri is not None
    return own_pairs.run(config, find_files(config.own.uri, config.own.pairs_per_part))


def _take(config: Config) -> Product:
    return _run(config).product


def _rows(product: Product) -> pd.DataFrame:
    return pd.concat([table.to_pandas() for table in product.scan()], ignore_index=True)


def _write(path: Path, columns: dict[str, list[object]], rows_in_group: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_in_group)
    return path


def test_pairs_keep_their_facts_and_a_patient_is_one_article(tmp_path: Path) -> None:
    _write(tmp_path / "in" / "scans.parquet", _table(48))
    config = _config(tmp_path / "root", tmp_path / "in", name="ward-3")
    pairs = _take(config)
    assert pairs.parts == 3
    rows = _rows(pairs)
    assert all(table.schema.equals(PAIRS) for table in pairs.scan())
    assert len(rows) == 48
    assert rows["pair_id"].is_unique
    assert rows["article_id"].nunique() == 24
    assert set(rows.groupby("article_id").size()) == {2}
    assert not rows["pair_id"].str.contains("patient").any()
    assert set(rows["figure_id"].str.partition("/")[2]) == {f"scan.{n}" for n in range(48)}
    first = rows[rows["figure_id"].str.endswith("/scan.5")].iloc[0]
    assert (first["caption"], first["license"], first["journal"]) == (
        "Radiograph of patient 2, view 1",
        "CC BY",
        "ward-3",
    )
    assert decode(first["image"]).shape == (64, 64, 3)
    assert first["original_format"] == "PNG"
    assert pairs.manifest["counts"] == [{"unit": "picture", "in": 48, "kept": 48, "dropped": {}}]
    assert _run(config).state == "skipped"


def test_every_fault_is_one_ledger_row_with_its_reason(tmp_path: Path) -> None:
    columns = _table(16)
    columns["image"][1:7] = [b"no picture", None, _png(1)[:200], _png(2, 8), columns["image"][0], columns["image"][6]]
    columns["id"][5] = columns["id"][0]
    columns["caption"][5] = "Radiograph  of PATIENT 0, view 0"
    columns["patient"][5] = columns["patient"][0]
    columns["caption"][7] = "  "
    columns["split"][8] = "holdout"
    columns["license"][9:12] = ["secret", "cc-by-nc-4.0", "CC BY\u2011NC\u2011ND 4.0"]
    _write(tmp_path / "in" / "a.parquet", columns)
    pairs = _take(_config(tmp_path / "root", tmp_path / "in"))
    fates = dict(zip(*(pairs.ledger().to_pandas()[name] for name in ("id", "reason")), strict=True))
    assert fates == {
        "a.parquet:1": "unknown_format",
        "a.parquet:2": "missing_object",
        "a.parquet:3": "truncated_image",
        "a.parquet:4": "too_small",
        "a.parquet:5": "duplicate",
        "a.parquet:7": "no_caption",
        "a.parquet:8": "bad_split",
    }
    assert pairs.manifest["counts"][0] == {
        "unit": "picture",
        "in": 16,
        "kept": 9,
        "dropped": dict(Counter(fates.values())),
    }
    assert Counter(_rows(pairs)["license"]) == {"CC BY": 6, "unknown": 1, "CC BY-NC": 1, "CC BY-NC-ND": 1}


def test_a_record_that_stands_in_two_files_is_kept_once(tmp_path: Path) -> None:
    columns = _table(8)
    _write(tmp_path / "in" / "a.parquet", columns)
    columns["caption"][3] = "Another view of the same scan"
    columns["image"][5] = b"no picture"
    _write(tmp_path / "in" / "b.parquet", columns)
    pairs = _take(_config(tmp_path / "root", tmp_path / "in"))
    assert pairs.parts == 2
    rows = _rows(pairs)
    assert rows["pair_id"].is_unique
    assert rows["figure_id"].nunique() == 8  # the changed text is a second pair of its figure
    assert pairs.manifest["counts"] == [
        {"unit": "picture", "in": 16, "kept": 9, "dropped": {"duplicate": 6, "unknown_format": 1}}
    ]
    ledger = pairs.ledger().to_pylist()
    assert {row["id"] for row in ledger if row["reason"] == "duplicate"} == {
        f"b.parquet:{n}" for n in range(8) if n not in (3, 5)
    }
    assert {row["detail"] for row in ledger if row["reason"] == "duplicate"} < set(rows["pair_id"])


def test_several_images_of_a_sample_are_pairs_of_one_group_and_add_up(tmp_path: Path) -> None:
    images = [[_png(0), _png(1), b"no picture"], [_png(2)], []]
    _write(tmp_path / "in" / "a.parquet", {"images": images, "caption": ["Three views", "One view", "None at all"]})
    pairs = _take(_config(tmp_path / "root", tmp_path / "in"))
    rows = _rows(pairs)
    assert sorted(rows["caption"]) == ["One view", "Three views", "Three views"]
    assert rows.groupby("caption")["article_id"].nunique().tolist() == [1, 1]
    assert pairs.manifest["counts"] == [
        {"unit": "picture", "in": 5, "kept": 3, "dropped": {"missing_object": 1, "unknown_format": 1}}
    ]


def test_a_run_that_keeps_no_pair_stops_and_names_the_commonest_reasons(tmp_path: Path) -> None:
    lines = ["filepath,title", *(f"/mnt/disk/{n}.png,Scan {n}" for n in range(9)), "here.png,A scan", "text.png,"]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "list.csv").write_text("\n".join(lines))
    (tmp_path / "in" / "here.png").write_bytes(b"no picture")
    (tmp_path / "in" / "text.png").write_bytes(_png(0))
    for _ in range(2):  # the same command says the same again
        with pytest.raises(ConfigError) as error:
            _take(_config(tmp_path / "root", tmp_path / "in"))
        text = str(error.value)
        assert f"own.uri={tmp_path}/in: none of 11 images became a pair: 9 missing_object (the object is listed" in text
        assert "as list.csv:0: /mnt/disk/0.png lies outside own.uri=" in text
        assert "1 unknown_format" in text and "1 no_caption" in text


def test_splits_are_by_patient_and_a_split_that_is_said_is_kept(tmp_path: Path) -> None:
    columns = _table(400)
    columns["split"][0:4] = ["test", "train", "val", "validation"]
    _write(tmp_path / "in" / "a.parquet", columns, rows_in_group=64)
    config = _config(tmp_path / "root", tmp_path / "in")
    pairs = _take(config)
    corpus = curate.run(config, pairs).product
    rows = _rows(pairs)[["pair_id", "article_id", "figure_id", "source_split"]].assign(
        **_rows(corpus)[["split", "kept", "reason"]]
    )
    by_id = rows.set_index(rows["figure_id"].str.rpartition("/")[2])
    assert by_id.loc["scan.0", ["split", "kept"]].tolist() == ["test", True]
    assert by_id.loc["scan.1", ["split", "kept", "reason"]].tolist() == ["train", False, "split_conflict"]
    assert by_id.loc[["scan.2", "scan.3"], "split"].tolist() == ["validation"] * 2
    kept = rows[rows["kept"]]
    assert kept.groupby("article_id")["split"].nunique().max() == 1
    assert {"train", "validation", "test"} == set(kept["split"])


def test_folder_and_csv_on_s3_give_what_the_local_folder_gives(tmp_path: Path, s3: S3) -> None:
    folder = tmp_path / "in"
    (folder / "scans").mkdir(parents=True)
    lines = ["image,text,patient"]
    for n in range(20):
        (folder / "scans" / f"{n}.png").write_bytes(_png(n))
        lines.append(f"scans/{n}.png,Scan number {n},p{n % 7}")
    lines.append("scans/absent.png,No such scan,p1")
    (folder / "pairs.csv").write_text("\n".join(lines))
    local = _take(_config(tmp_path / "root", folder))
    remote = _take(_config(tmp_path / "other", s3.upload(folder)))
    pd.testing.assert_frame_equal(_rows(local), _rows(remote))
    assert len(_rows(local)) == 20
    assert local.ledger().to_pylist()[0]["detail"] == "scans/absent.png"
    assert local.fingerprint != remote.fingerprint  # the copies were made at other times


def test_beside_pmc_nothing_is_copied_and_all_behind_it_reads_both(tmp_path: Path) -> None:
    make_bucket(tmp_path / "bucket", n_articles=30, seed=4)
    _write(tmp_path / "in" / "a.parquet", _table(60))
    source = {"uri": str(tmp_path / "bucket"), "articles_per_part": 12}
    config = parse(
        {"root": str(tmp_path / "root"), "source": source, "own": {"uri": str(tmp_path / "in"), "pairs_per_part": 16}},
        "test",
    )
    pmc = preprocess.run(
        config, ingest.run(config, catalog.run(config, resolve_inventory(config)).product).product
    ).product
    own = _take(config)
    both = side_by_side.run(config, pmc, own).product
    assert both.place.list().keys() == {"_MANIFEST.json"}
    assert both.parts == pmc.parts + own.parts
    pd.testing.assert_frame_equal(_rows(both), pd.concat([_rows(pmc), _rows(own)], ignore_index=True))
    assert both.ledger().num_rows == pmc.ledger().num_rows + own.ledger().num_rows
    corpus = curate.run(config, both).product
    assert corpus.manifest["counts"][0]["in"] == len(_rows(both))
    train = _rows(corpus).query("kept and split == 'train'")
    assert len(find_rows(both, corpus, "train")) == len(train)
    assert train["pair_id"].str.startswith("own-").sum() > 30
    assert side_by_side.run(config, pmc, own).state == "skipped"


def test_a_killed_run_goes_on_with_the_parts_that_miss(tmp_path: Path) -> None:
    _write(tmp_path / "in" / "a.parquet", _table(48))
    config = _config(tmp_path / "root", tmp_path / "in")
    pairs = _take(config)
    rows = _rows(pairs)
    pairs.place.delete("_MANIFEST.json")
    pairs.place.delete("ledger/part-00001.parquet")
    again = _run(config)
    assert again.state == "resumed"
    pd.testing.assert_frame_equal(_rows(again.product), rows)


def test_the_checks_of_preprocess_are_part_of_what_the_pairs_are(tmp_path: Path) -> None:
    _write(tmp_path / "in" / "a.parquet", _table(4))
    files = find_files(str(tmp_path / "in"), 16)
    config = _config(tmp_path / "root", tmp_path / "in")
    smaller = parse(config.model_dump(mode="json") | {"preprocess": {"short_side": 48}}, "test")
    slower = parse(config.model_dump(mode="json") | {"preprocess": {"resources": {"num_cpus": 2}}}, "test")
    assert own_pairs.plan(config, files).fingerprint == own_pairs.plan(slower, files).fingerprint
    assert own_pairs.plan(config, files).fingerprint != own_pairs.plan(smaller, files).fingerprint
