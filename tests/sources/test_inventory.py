"""The inventory: streamed, dealt out in parts by hash, sampled by another hash."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from zlib import crc32

import pytest

from biomedclip_ray.config import Source, SourceResources, SourceSelect
from biomedclip_ray.schema import part_of
from biomedclip_ray.sources.bucket import INVENTORIES, FolderBucket, SourceError
from biomedclip_ray.sources.inventory import (
    entries,
    find_inventory,
    parts_of,
    read_entries,
    read_listed,
    shard_entries,
)
from biomedclip_ray.sources.open import open_bucket
from biomedclip_ray.store.place import Place
from tests.conftest import S3

DATE = "2026-11-20T01-00Z"


def _bucket(folder: Path, ids: list[str], extra: str = "") -> FolderBucket:
    lines = [f'"b","metadata/{i}.json","2026-11-12T09:30:00.000Z","{crc32(i.encode()):08x}"\n' for i in ids]
    text = "".join(lines) + extra
    (folder / INVENTORIES / DATE).mkdir(parents=True)
    (folder / INVENTORIES / "data").mkdir()
    half = text[: len(text) // 2].rfind("\n") + 1
    files = []
    for number, piece in enumerate((text[:half], text[half:])):
        key = f"{INVENTORIES}/data/{number}.csv.gz"
        (folder / key).write_bytes(gzip.compress(piece.encode()))
        files.append({"key": key})
    (folder / INVENTORIES / DATE / "manifest.json").write_text(json.dumps({"files": files}))
    return FolderBucket(folder)


def _dealt(bucket: FolderBucket, tmp_path: Path, **select: object) -> list[list[str]]:
    source = Source(uri="x", articles_per_part=10, select=SourceSelect(**select))
    place = Place(str(tmp_path / "shards"))
    place.delete_all()
    parts = shard_entries(bucket, find_inventory(bucket, "newest"), source, place)
    tables = [read_entries(place, part, parts) for part in range(parts)]
    return [[f"{r['pmcid']}.{r['version']}" for r in table.to_pylist()] for table in tables]


def test_every_line_lies_in_the_part_of_its_hash_once(tmp_path: Path) -> None:
    ids = [f"PMC{n}.{v}" for n in range(1, 2001) for v in ((1, 2, 10) if n % 50 == 0 else (1,))]
    parts = _dealt(_bucket(tmp_path, ids), tmp_path)
    assert len(parts) == 208
    assert sorted(i for part in parts for i in part) == sorted(ids)
    assert all(part_of(i.split(".")[0], 208) == number for number, part in enumerate(parts) for i in part)


def test_versions_are_sorted_as_numbers(tmp_path: Path) -> None:
    assert _dealt(_bucket(tmp_path, ["PMC7.10", "PMC7.2", "PMC7.1"]), tmp_path) == [["PMC7.1", "PMC7.2", "PMC7.10"]]


def test_parts_without_an_article_are_empty(tmp_path: Path) -> None:
    bucket = _bucket(tmp_path, [f"PMC5.{v}" for v in range(1, 1001)])
    parts = _dealt(bucket, tmp_path)
    assert len(parts) == 100
    assert sorted(map(len, parts)) == [0] * 99 + [1000]


def test_other_keys_are_left_out(tmp_path: Path) -> None:
    extra = "".join(
        f'"b","{key}","d","e"\n' for key in ("metadata/readme.json", "PMC1.1/PMC1.1.json", "metadata/PMC1.json")
    )
    assert _dealt(_bucket(tmp_path, ["PMC1.1", "PMC2.1"], extra), tmp_path) == [["PMC1.1", "PMC2.1"]]


def test_a_sample_by_number_is_of_articles_and_spreads_over_the_parts(tmp_path: Path) -> None:
    ids = [f"PMC{n}.{v}" for n in range(1, 3001) for v in (1, 2)]
    parts = _dealt(_bucket(tmp_path, ids), tmp_path, articles=100)
    taken = [i for part in parts for i in part]
    assert len(taken) == 200
    assert len({i.split(".")[0] for i in taken}) == 100
    assert len(parts) == 20
    assert max(map(len, parts)) <= 40


def test_a_smaller_sample_lies_within_a_larger_one(tmp_path: Path) -> None:
    bucket = _bucket(tmp_path, [f"PMC{n}.1" for n in range(1, 1001)])
    few = {i for part in _dealt(bucket, tmp_path, articles=50) for i in part}
    more = {i for part in _dealt(bucket, tmp_path, articles=200) for i in part}
    tenth = {i for part in _dealt(bucket, tmp_path, percent=10) for i in part}
    assert len(few) == 50
    assert few < more
    assert 60 < len(tenth) < 140
    assert few < tenth < more


def test_a_list_takes_known_ids_and_counts_the_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bucket = _bucket(tmp_path, [f"PMC{n}.1" for n in range(1, 101)])
    (tmp_path / "ids.txt").write_text("PMC5\n7\nPMC9.1\nPMC5\nPMC999999\n")
    with caplog.at_level(logging.INFO):
        assert _dealt(bucket, tmp_path, pmcids=str(tmp_path / "ids.txt")) == [["PMC5.1", "PMC7.1", "PMC9.1"]]
    assert "source.select.pmcids: 3 ids found, 1 unknown to the inventory, 1 named more than once" in caplog.text


@pytest.mark.parametrize("text", ["\ufeffPMC5\r\nPMC7\r\n", "PMC5,PMC7\n", "pmc5; 7", "PMC5\tPMC7"])
def test_a_list_as_other_programs_write_it(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    bucket = _bucket(tmp_path, [f"PMC{n}.1" for n in range(1, 11)])
    (tmp_path / "ids.txt").write_bytes(text.encode())
    with caplog.at_level(logging.INFO):
        assert _dealt(bucket, tmp_path, pmcids=str(tmp_path / "ids.txt")) == [["PMC5.1", "PMC7.1"]]
    assert "2 ids found, 0 unknown" in caplog.text


def test_every_listed_id_belongs_to_one_part_also_where_a_sample_leaves_it_out(tmp_path: Path) -> None:
    bucket = _bucket(tmp_path, [f"PMC{n}.1" for n in range(1, 101)])
    ids = [f"PMC{n}" for n in range(1, 121)]
    (tmp_path / "ids.txt").write_text(" ".join([*ids, "PMC1"]))
    parts = len(_dealt(bucket, tmp_path, pmcids=str(tmp_path / "ids.txt"), articles=30))
    listed = [read_listed(Place(str(tmp_path / "shards")), part) for part in range(parts)]
    assert {row["pmcid"]: part for part, rows in enumerate(listed) for row in rows} == {
        i: part_of(i, parts) for i in ids
    }
    rows = [row for part in listed for row in part]
    assert {row["pmcid"] for row in rows if not row["known"]} == {f"PMC{n}" for n in range(101, 121)}
    assert {row["pmcid"]: row["times"] for row in rows if row["times"] > 1} == {"PMC1": 2}


def test_a_list_in_which_none_is_known_is_an_error(tmp_path: Path) -> None:
    bucket = _bucket(tmp_path, ["PMC1.1"])
    (tmp_path / "ids.txt").write_text("PMC999999\n")
    with pytest.raises(SourceError, match="none of the inventory's articles is selected; check source.select.pmcids"):
        _dealt(bucket, tmp_path, pmcids=str(tmp_path / "ids.txt"))
    with pytest.raises(SourceError, match="nowhere.txt cannot be read"):
        _dealt(bucket, tmp_path, pmcids=str(tmp_path / "nowhere.txt"))


def test_a_cut_inventory_file_is_an_error_not_a_smaller_corpus(tmp_path: Path) -> None:
    bucket = _bucket(tmp_path, [f"PMC{n}.1" for n in range(1, 5001)])
    path = tmp_path / INVENTORIES / "data" / "1.csv.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(SourceError, match=r"inventory file .*1.csv.gz cannot be read"):
        _dealt(bucket, tmp_path)


_GOOD = b'"b","metadata/PMC1.1.json","d","e"\n'


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"", "Empty CSV file"),
        (gzip.compress(_GOOD)[:-1], "Truncated compressed stream"),
        (gzip.compress(_GOOD)[:-8], "Truncated compressed stream"),
        (_GOOD, "incorrect header check"),
        (gzip.compress(_GOOD + b'"b","metadata/PMC2.1.json","d"\n'), "Expected 4 columns, got 3"),
        (gzip.compress(b'"b","metadata/PMC2.1.json"\n'), "Expected 4 columns, got 2"),
        (gzip.compress(_GOOD[:-1] + b',"more"\n'), "Expected 4 columns, got 5"),
    ],
)
def test_an_inventory_file_that_is_cut_or_of_another_form_is_an_error(tmp_path: Path, file: bytes, said: str) -> None:
    bucket = _bucket(tmp_path, [f"PMC{n}.1" for n in range(1, 50)])
    (tmp_path / INVENTORIES / "data" / "1.csv.gz").write_bytes(file)
    with pytest.raises(SourceError, match=f"inventory file .*1.csv.gz cannot be read: .*{said}"):
        _dealt(bucket, tmp_path)


def test_an_inventory_file_without_a_line_adds_nothing(tmp_path: Path) -> None:
    bucket = _bucket(tmp_path, ["PMC1.1", "PMC2.1"])
    (tmp_path / INVENTORIES / "data" / "1.csv.gz").write_bytes(gzip.compress(b""))
    assert _dealt(bucket, tmp_path) == [["PMC1.1"]]
    (tmp_path / INVENTORIES / "data" / "0.csv.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(SourceError, match="none of the inventory's articles is selected"):
        _dealt(bucket, tmp_path)


def test_commas_and_quotes_in_a_field_stay_in_it(tmp_path: Path) -> None:
    line = '"b","metadata/PMC3.1.json","2026, ""late""","a,b"\n'
    bucket = _bucket(tmp_path, ["PMC1.1"], line + '"b, c","metadata/PMC4.1.json","d","e"\n')
    rows = [row for table in entries(bucket, find_inventory(bucket, "newest")) for row in table.to_pylist()]
    assert [row["pmcid"] for row in rows] == ["PMC1", "PMC3", "PMC4"]
    assert (rows[1]["last_modified"], rows[1]["etag"]) == ('2026, "late"', "a,b")


def test_an_inventory_file_that_breaks_off_on_its_way_is_fetched_again(tmp_path: Path, s3: S3) -> None:
    _bucket(tmp_path, [f"PMC{n}.1" for n in range(1, 501)])
    bucket = open_bucket(s3.upload(tmp_path), SourceResources(retries=2, deadline_s=20))
    inventory = find_inventory(bucket, "newest")
    s3.faults = {inventory.files[0]: ["truncate"], inventory.files[1]: ["503", "truncate"]}
    assert sum(table.num_rows for table in entries(bucket, inventory)) == 500
    s3.faults = {inventory.files[1]: ["truncate"] * 3}
    with pytest.raises(SourceError, match=r"1.csv.gz cannot be read"):
        list(entries(bucket, inventory))


def test_a_date_that_is_not_kept_any_more_names_those_that_are(tmp_path: Path) -> None:
    bucket = _bucket(tmp_path, ["PMC1.1"])
    with pytest.raises(SourceError, match=r"source.inventory=2026-01-01T01-00Z: not in .* it has 2026-11-20T01-00Z"):
        find_inventory(bucket, "2026-01-01T01-00Z")


def test_shards_cover_all_parts_once() -> None:
    for parts in (1, 2, 63, 64, 65, 1000, 17_778):
        covered = [part for shard in range(min(64, parts)) for part in parts_of(shard, parts)]
        assert covered == list(range(parts))
        assert all(
            part * min(64, parts) // parts == shard
            for shard in range(min(64, parts))
            for part in parts_of(shard, parts)
        )


def test_both_real_inventories_are_read(corpus: Path) -> None:
    bucket = open_bucket(str(corpus / "bucket"), SourceResources())
    found = {}
    for date in ("2026-11-19T01-00Z", "newest"):
        tables = list(entries(bucket, find_inventory(bucket, date)))
        found[date] = {f"{r['pmcid']}.{r['version']}" for table in tables for r in table.to_pylist()}
    assert len(found["newest"]) == 137
    assert found["2026-11-19T01-00Z"] - found["newest"] == {"PMC99000013.1"}
    assert found["newest"] - found["2026-11-19T01-00Z"] == {"PMC99000009.1", "PMC12419688.1", "PMC1298938.1"}
