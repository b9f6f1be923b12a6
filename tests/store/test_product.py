"""Products: what decides a fingerprint, what makes one finished, and what a resumed stage finds."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedclip_ray.schema import CORPUS, PAIRS, Reason
from biomedclip_ray.store.attempt import Attempt, UnfinishedError, attempt
from biomedclip_ray.store.lease import HeldError
from biomedclip_ray.store.ledger import Count, Ledger
from biomedclip_ray.store.parquet import conform, parquet_bytes
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product, data_name, ledger_name
from tests.conftest import S3


def _plan(root: Path, config: dict | None = None, version: int = 1, inputs: tuple[Product, ...] = ()) -> Product:
    return Product.plan(str(root), "curate", version, config or {"a": 1}, list(inputs))


def _rows(*ids: str) -> pa.Table:
    n = len(ids)
    columns = {"pair_id": ids, "split": ["train"] * n, "group": [1] * n, "kept": [True] * n, "reason": [None] * n}
    return pa.table(columns, schema=CORPUS)


def _write(current: Attempt, part: int, ids: list[str], dropped: dict[str, Reason]) -> None:
    ledger = Ledger("curate")
    for id_, reason in dropped.items():
        ledger.drop("pair", id_, reason, "why")
    ledger.count("pair", len(ids) + len(dropped), len(ids))
    current.write_part(part, _rows(*ids), ledger.table(), ledger.counts, 1000 + part)


def test_resources_at_any_depth_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    plain = _plan(tmp_path, {"a": 1, "select": {"b": 2}})
    tuned = _plan(tmp_path, {"a": 1, "resources": {"workers": 8}, "select": {"b": 2, "resources": {"x": 1}}})
    assert plain.fingerprint == tuned.fingerprint
    assert tuned.config == {"a": 1, "select": {"b": 2}}


def test_config_version_and_inputs_each_change_the_fingerprint(tmp_path: Path) -> None:
    first = _plan(tmp_path)
    others = [_plan(tmp_path, {"a": 2}), _plan(tmp_path, version=2), _plan(tmp_path, inputs=(first,))]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_a_part_is_done_when_both_its_files_are_there(tmp_path: Path) -> None:
    product = _plan(tmp_path)
    with attempt(product, 3) as current:
        _write(current, 0, ["a"], {})
        _write(current, 2, ["b"], {})
        product.place.delete(ledger_name(2))
        assert current.missing_parts() == [1, 2]


def test_files_of_a_write_that_was_killed_are_swept_away_when_the_stage_resumes(tmp_path: Path) -> None:
    product = _plan(tmp_path)
    with attempt(product, 2) as current:
        _write(current, 0, ["a"], {})
    torn = product.place.local / "data" / ".part-00001.parquet.0a1b.tmp"
    torn.write_bytes(b"half")
    with attempt(product, 2) as current:
        assert current.state == "resumed"
        assert not torn.exists()
        assert current.missing_parts() == [1]


def test_a_product_that_was_finished_while_a_driver_waited_for_it_is_not_made_again(tmp_path: Path) -> None:
    product, late = _plan(tmp_path), _plan(tmp_path)
    with attempt(product, 1) as current:
        _write(current, 0, ["a"], {})
        current.finish_parts(transient_limit=0)
    with pytest.raises(HeldError, match="curate was finished by another driver just now"), attempt(late, 1):
        pass
    assert not product.place.exists("_LEASE.json")


def test_who_waited_for_a_driver_that_finished_is_told_its_name(tmp_path: Path) -> None:
    product, late = _plan(tmp_path), _plan(tmp_path)
    go_on = threading.Event()

    def finish() -> None:
        with attempt(product, 1) as current:
            _write(current, 0, ["a"], {})
            go_on.wait(20)
            time.sleep(0.3)
            current.finish_parts(transient_limit=0)

    first = threading.Thread(target=finish)
    first.start()
    while not product.place.exists("_LEASE.json"):
        time.sleep(0.01)
    go_on.set()
    with (
        pytest.raises(HeldError, match=rf"finished by process {os.getpid()} on .* just now"),
        attempt(late, 1),
    ):
        pass
    first.join()


def test_the_manifest_balances_every_unit_and_makes_the_product_finished(tmp_path: Path) -> None:
    product = _plan(tmp_path)
    assert not product.finished
    with attempt(product, 2) as current:
        _write(current, 0, ["a", "b"], {"c": Reason.DUPLICATE})
        _write(current, 1, ["d"], {"e": Reason.DUPLICATE, "f": Reason.SHORT_TEXT})
        current.finish_parts(transient_limit=0)
    again = _plan(tmp_path)
    assert again.finished
    assert again.manifest["counts"] == [
        {"unit": "pair", "in": 6, "kept": 3, "dropped": {"duplicate": 2, "short_text": 1}}
    ]
    assert again.manifest["peak_rss"] == 1001
    assert [table["pair_id"].to_pylist() for table in again.scan(["pair_id"])] == [["a", "b"], ["d"]]
    assert again.ledger()["id"].to_pylist() == ["c", "e", "f"]
    assert not again.place.exists("_LEASE.json")


def test_a_unit_that_vanished_is_an_error_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"pair: in=5 but kept=4"):
        Count("pair", 5, 4, {}).check("curate")
    product = _plan(tmp_path)
    with attempt(product, 1) as current:
        current.write_part(0, _rows("a"), Ledger("curate").table(), {"pair": (2, 1)})
        with pytest.raises(RuntimeError, match="in=2 but kept=1"):
            current.finish_parts(transient_limit=0)
    assert not product.finished


def test_too_many_transient_rows_leave_the_product_unfinished_and_open_their_parts_again(tmp_path: Path) -> None:
    product = _plan(tmp_path)
    with attempt(product, 2) as current:
        _write(current, 0, ["a"], {})
        _write(current, 1, ["b"], {"c": Reason.FETCH_FAILED})
        with pytest.raises(UnfinishedError, match="1 of 3 units"):
            current.finish_parts(transient_limit=0.1)
    assert not product.finished
    with attempt(product, 2) as current:
        assert current.state == "resumed"
        assert current.missing_parts() == [1]
        _write(current, 1, ["b", "c"], {})
        current.finish_parts(transient_limit=0.1)
    assert product.manifest["counts"] == [{"unit": "pair", "in": 3, "kept": 3, "dropped": {}}]


def test_few_transient_rows_are_tolerated(tmp_path: Path) -> None:
    product = _plan(tmp_path)
    with attempt(product, 1) as current:
        _write(current, 0, ["a", "b"], {"c": Reason.DEADLINE})
        current.finish_parts(transient_limit=0.5)
    assert product.manifest["counts"][0]["dropped"] == {"deadline": 1}


def test_a_column_that_is_all_null_keeps_its_type(tmp_path: Path) -> None:
    rows = pa.Table.from_pylist([dict.fromkeys(PAIRS.names)], schema=PAIRS)
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet_bytes(conform(rows, PAIRS)))
    assert pq.read_schema(path) == PAIRS


def test_row_groups_are_capped_in_bytes_and_pictures_come_back_as_they_were(tmp_path: Path) -> None:
    pictures = [bytes([n]) * 1_000_000 + b"\0" for n in range(40)]
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet_bytes(pa.table({"image": pa.array(pictures, pa.binary())})))
    file = pq.ParquetFile(path)
    assert file.num_row_groups == 3
    assert file.metadata.row_group(0).column(0).compression == "UNCOMPRESSED"
    assert file.read()["image"].to_pylist() == pictures


def test_an_empty_part_is_a_part(tmp_path: Path) -> None:
    product = _plan(tmp_path)
    with attempt(product, 1) as current:
        current.write_part(0, _rows(), Ledger("curate").table(), {"pair": (0, 0)})
        current.finish_parts(transient_limit=0)
    assert product.read(0).num_rows == 0
    assert product.read(0).schema == CORPUS
    assert product.place.exists(data_name(0))


def test_a_finished_part_is_read_without_asking_for_its_size(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    product = Product.plan(f"{s3.upload(tmp_path / 'empty')}/root", "curate", 1, {}, [])
    with attempt(product, 1) as current:
        _write(current, 0, ["a", "b"], {"c": Reason.DUPLICATE})
        current.finish_parts(0.0)
    finished = Product.load(product.root, "curate", product.fingerprint)
    assert finished.manifest["parts"] == 1
    s3.gets.clear()
    s3.heads.clear()
    assert finished.read(0, ["pair_id", "split"]).to_pydict() == {"pair_id": ["a", "b"], "split": ["train"] * 2}
    assert finished.read_ledger(0)["id"].to_pylist() == ["c"]
    assert s3.heads == []
    assert len(s3.gets) == 4  # a footer and the columns, of each file


def test_a_file_is_written_and_read_in_one_request_however_large_it_is(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    place, data = Place(f"{s3.upload(tmp_path / 'empty')}/root"), os.urandom(3_000_000)
    s3.writes.clear()
    place.write("weights", data)
    place.write("more", 4 * data)
    assert s3.writes == ["root/weights", "root/more"]
    s3.gets.clear()
    assert place.read("weights") == data
    assert s3.gets == ["root/weights"]


def test_a_scan_reads_parts_ahead(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    product = Product.plan(f"{s3.upload(tmp_path / 'empty')}/root", "curate", 1, {}, [])
    with attempt(product, 12) as current:
        for part in range(12):
            _write(current, part, [f"a{part}"], {})
        current.finish_parts(0.0)
    s3.gets.clear()
    s3.hold(lambda key: key.endswith(".parquet"), 0)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.extend(table["pair_id"][0].as_py() for table in product.scan()))
    reader.start()
    try:
        give_up = time.monotonic() + 60
        while len(set(s3.gets)) < 12 and time.monotonic() < give_up:
            time.sleep(0.05)
        asked = {key.rpartition("/data/")[2] for key in s3.gets if "/data/" in key}
        assert asked == {data_name(part).removeprefix("data/") for part in range(12)}
    finally:
        s3.release()
        reader.join(60)
    assert found == [f"a{part}" for part in range(12)]
