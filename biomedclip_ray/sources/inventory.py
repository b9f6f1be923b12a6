"""The bucket's inventory: one line for each article version, eight million of them, streamed and never held whole.

Two passes over the gzip CSV: the first counts what the selection takes and hence the number of parts; the second deals
the lines into shards on the local disk, which are sorted and stored with one row group a part. A worker then reads its
own few hundred lines and nothing else. Eight million lines take 22 seconds and 342 MB at their peak, 99 of them
imports; a sample of a thousand articles 12 seconds and 356 MB (benchmarks/inventory.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from biomedclip_ray.config import Config, Source, SourceSelect
from biomedclip_ray.run.record import Inventory, load_run, source_name
from biomedclip_ray.schema import hash64, part_of
from biomedclip_ray.sources.bucket import INVENTORIES, Bucket, ObjectError, SourceError, inventory_dates
from biomedclip_ray.sources.open import open_bucket
from biomedclip_ray.store.place import Place

log = logging.getLogger(__name__)

ENTRIES = pa.schema(
    {"pmcid": pa.string(), "version": pa.int32(), "key": pa.string(), "last_modified": pa.string(), "etag": pa.string()}
)
LISTED = pa.schema({"pmcid": pa.string(), "times": pa.int64(), "known": pa.bool_()})
SHARDS = 64
_LISTED = "listed.parquet"
_ALL = (1 << 64) - 1
# behind a preprint's id stands where its package lies
_KEY = r"^metadata/(?P<pmcid>PMC\d+|RX\d+)\.(?P<version>\d{1,9})(?:/[^\n]+)?\.json$"


def resolve_inventory(config: Config, sync: bool = False) -> Inventory:
    """The inventory this run works from: the date in the config, or the one this root has settled on, or the newest.

    Raises:
        SourceError: it is not known yet and the source does not answer.
    """
    wanted = config.source.inventory
    record, source = load_run(config.root), source_name(config)
    known = record["known"].get(source, {}).get(wanted)
    if wanted == "newest" and not sync:
        known = record["inventories"].get(source)
    if known:
        return Inventory(known["date"], known["checksum"], tuple(known["files"]))
    return find_inventory(open_bucket(config.source.uri, config.source.resources), wanted)


def find_inventory(bucket: Bucket, wanted: str) -> Inventory:
    """The inventory of a date, or the newest.

    Raises:
        SourceError: there is none, or its manifest cannot be read.
    """
    dates = inventory_dates(bucket)
    date = dates[-1] if wanted == "newest" else wanted
    if date not in dates:
        raise SourceError(f"source.inventory={date}: not in {bucket.uri}; it has {', '.join(dates[-5:])} (or newest)")
    key = f"{INVENTORIES}/{date}/manifest.json"
    try:
        data = bucket.get(key)
        files = tuple(str(file["key"]) for file in json.loads(data)["files"])
    except (ObjectError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"source.uri={bucket.uri}: {key} cannot be read: {error}") from error
    return Inventory(date, hashlib.md5(data, usedforsecurity=False).hexdigest(), files)


def entries(bucket: Bucket, inventory: Inventory) -> Iterator[pa.Table]:
    """The inventory's lines in tables of the schema ENTRIES; keys of other objects are left out.

    Raises:
        SourceError: a file of the inventory cannot be read to its end.
    """
    columns = ["bucket", "key", "last_modified", "etag"]
    for key in inventory.files:
        try:
            raw = bucket.stream(key)
            with raw, pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "gzip") as stream:
                reader = csv.open_csv(
                    stream,
                    read_options=csv.ReadOptions(column_names=columns, block_size=4 << 20),
                    convert_options=csv.ConvertOptions(
                        include_columns=columns[1:], column_types=dict.fromkeys(columns, pa.string())
                    ),
                )
                for batch in reader:
                    yield _parsed(pa.table(batch))
        except (ObjectError, OSError, pa.ArrowException) as error:
            # a file of no byte at all is no gzip, but a cut one
            if "Empty CSV file" in str(error) and _has_bytes(bucket, key):
                continue
            raise SourceError(f"source.uri={bucket.uri}: inventory file {key} cannot be read: {error}") from error


def _has_bytes(bucket: Bucket, key: str) -> bool:
    with bucket.stream(key) as raw:
        return bool(raw.read(1))


def _parsed(lines: pa.Table) -> pa.Table:
    found = pc.extract_regex(lines["key"], _KEY)
    known = pc.is_valid(found)
    lines, found = lines.filter(known), pc.filter(found, known).combine_chunks()
    return pa.table(
        [
            pc.struct_field(found, "pmcid"),
            pc.struct_field(found, "version").cast(pa.int32()),
            lines["key"],
            lines["last_modified"],
            lines["etag"],
        ],
        schema=ENTRIES,
    )


class Selection:
    """Which PMCIDs are looked at: a share or a number by hash, a list. Made for one inventory.

    The hash is salted: with the hash that deals out parts, a sample would lie in a few parts.
    """

    def __init__(self, select: SourceSelect) -> None:
        self.limit = select.articles
        self.below = min(_ALL, int(select.percent / 100 * _ALL))
        self.listed = None if select.pmcids is None else read_list(select.pmcids)
        self.known: set[str] = set()
        """Ids of the list that the inventory has; whole after `learn`."""
        self._value_set = pa.array(self.listed or (), pa.string())

    def learn(self, tables: Iterator[pa.Table]) -> int:
        """First pass: settles the threshold of a sample, and which listed ids are known. Returns the entries taken."""
        hashes = np.zeros(0, np.uint64)
        counts = np.zeros(0, np.int64)
        taken = 0
        for table in tables:
            if self.listed is not None:
                table = self._listed(table)
                self.known |= set(table["pmcid"].to_pylist())
            table = self._sampled(table)
            taken += table.num_rows
            if self.limit is not None:
                fresh = np.fromiter((_sample_hash(p) for p in table["pmcid"].to_pylist()), np.uint64, table.num_rows)
                hashes, inverse = np.unique(np.concatenate([hashes, fresh]), return_inverse=True)
                counts = np.bincount(inverse, np.concatenate([counts, np.ones(len(fresh))])).astype(np.int64)
                hashes, counts = hashes[: self.limit], counts[: self.limit]
                if len(hashes) == self.limit:
                    self.below = min(self.below, int(hashes[-1]))
        return int(counts.sum()) if self.limit is not None else taken

    def take(self, table: pa.Table) -> pa.Table:
        """The rows whose PMCID is selected."""
        return self._sampled(self._listed(table))

    def _listed(self, table: pa.Table) -> pa.Table:
        if self.listed is None:
            return table
        return table.filter(pc.is_in(table["pmcid"], self._value_set))

    def _sampled(self, table: pa.Table) -> pa.Table:
        if self.below == _ALL:
            return table
        return table.filter(pa.array([_sample_hash(i) <= self.below for i in table["pmcid"].to_pylist()], pa.bool_()))


def _sample_hash(pmcid: str) -> int:
    return hash64(f"sample {pmcid}")


def read_list(uri: str) -> Counter[str]:
    """The ids of a list, and how often each stands there."""
    folder, _, name = uri.rpartition("/")
    try:
        text = Place(folder or ".").read(name).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"source.select.pmcids={uri} cannot be read: {error}") from error
    words = (word.split(".")[0].upper() for word in re.split(r"[\s,;]+", text) if word)
    ids = Counter(word if word.startswith("PMC") else f"PMC{word}" for word in words)
    if not ids:
        raise SourceError(f"source.select.pmcids={uri} names no article; expected one PMCID a line")
    return ids


def shard_entries(bucket: Bucket, inventory: Inventory, source: Source, place: Place, parts: int | None = None) -> int:
    """Store the selected entries as `shard-00017.parquet` files in `place`, one row group a part; returns the parts.

    `parts` is given where another catalog has dealt out the articles before.

    Raises:
        SourceError: the inventory cannot be read, or nothing in it is selected.
    """
    selection = Selection(source.select)
    taken = selection.learn(entries(bucket, inventory))
    if not taken:
        keys = "source.select.pmcids, .articles, .percent"
        raise SourceError(f"source.uri={bucket.uri}: none of the inventory's articles is selected; check {keys}")
    parts = parts or -(-taken // source.articles_per_part)
    if selection.listed is not None:
        log.info(
            "source.select.pmcids: %d ids found, %d unknown to the inventory, %d named more than once",
            len(selection.known),
            len(selection.listed) - len(selection.known),
            sum(times > 1 for times in selection.listed.values()),
        )
        place.write(_LISTED, _by_part(selection, parts))
    shards = min(SHARDS, parts)
    with tempfile.TemporaryDirectory(prefix="biomedclip-inventory-") as folder:
        paths = [Path(folder) / f"{shard}.arrow" for shard in range(shards)]
        _deal(selection, entries(bucket, inventory), parts, paths)
        for shard, path in enumerate(paths):
            place.write(shard_name(shard), _sorted_shard(path, parts_of(shard, parts)))
    return parts


def parts_of(shard: int, parts: int) -> range:
    """The parts that a shard holds, one row group each, in order."""
    shards = min(SHARDS, parts)
    return range(-(-shard * parts // shards), -(-(shard + 1) * parts // shards))


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.parquet"


def read_entries(place: Place, part: int, parts: int) -> pa.Table:
    """The entries of one part, sorted by PMCID, version and time."""
    shard = part * min(SHARDS, parts) // parts
    with place.open(shard_name(shard)) as file:
        return pq.ParquetFile(file).read_row_group(part - parts_of(shard, parts).start).drop_columns(["part"])


def _by_part(selection: Selection, parts: int) -> bytes:
    """The listed ids with the parts that they belong to, whether or not there is such an article; one
    row group a part.
    """
    assert selection.listed is not None
    dealt: list[list[dict[str, Any]]] = [[] for _ in range(parts)]
    for pmcid, times in sorted(selection.listed.items()):
        dealt[part_of(pmcid, parts)].append({"pmcid": pmcid, "times": times, "known": pmcid in selection.known})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, LISTED) as writer:
        for rows in dealt:
            writer.write_table(pa.Table.from_pylist(rows, schema=LISTED))
    return sink.getvalue().to_pybytes()


def read_listed(place: Place, part: int) -> list[dict[str, Any]]:
    """The ids of source.select.pmcids that belong to a part, as rows of LISTED; none where there is no list."""
    try:
        with place.open(_LISTED) as file:
            rows: list[dict[str, Any]] = pq.ParquetFile(file).read_row_group(part).to_pylist()
            return rows
    except FileNotFoundError:
        return []


def _deal(selection: Selection, tables: Iterator[pa.Table], parts: int, paths: list[Path]) -> None:
    schema = ENTRIES.append(pa.field("part", pa.int32()))
    writers = [pa.ipc.new_file(str(path), schema) for path in paths]
    try:
        for table in tables:
            table = selection.take(table)
            part = np.fromiter((hash64(p) * parts >> 64 for p in table["pmcid"].to_pylist()), np.int32, table.num_rows)
            table = table.append_column("part", pa.array(part)).cast(schema)
            shard = part.astype(np.int64) * len(paths) // parts
            for number in np.unique(shard):
                writers[number].write_table(table.filter(pa.array(shard == number)))
    finally:
        for writer in writers:
            writer.close()


def _sorted_shard(path: Path, parts: range) -> bytes:
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    by = ("part", "pmcid", "version", "last_modified", "key")
    table = table.sort_by([(name, "ascending") for name in by])
    part = table["part"].to_numpy()
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        for number in parts:
            first, last = np.searchsorted(part, [number, number + 1])
            writer.write_table(table.slice(first, last - first), row_group_size=max(1, last - first))
    return sink.getvalue().to_pybytes()
