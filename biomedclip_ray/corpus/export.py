"""Kept pairs as files that others read: WebDataset tar shards, or a folder that Hugging Face `datasets` opens as
images.

What each shard holds is decided before an image is read: parts that follow each other, up to PAIRS_PER_SHARD of one
split. So names are contiguous, held-out splits do not fall into thousands of tiny files, and a shard that is there is
done; the price is that a part is read once for each split. A task holds one shard (about 200 MB at 384 px) and one
part.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from biomedclip_ray.config import Config, ConfigError
from biomedclip_ray.corpus.aligned import check_aligned
from biomedclip_ray.corpus.card import FACTS, croissant, readme, sources
from biomedclip_ray.corpus.curate import SPLITS
from biomedclip_ray.schema import hash64
from biomedclip_ray.store.parquet import parquet_bytes
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product

log = logging.getLogger(__name__)

VERSION = 1
FORMS = ("webdataset", "datasets")
PAIRS_PER_SHARD = 4000
NOTE = "_EXPORT.json"
_MARKS = "_shards"
_COUNTED = ("split", "license", "figure_kind", "language")
_LOG_S = 30.0


@dataclass(frozen=True)
class Shard:
    """One file: `pairs` kept pairs of `split`, from `parts` in order."""

    name: str
    split: str
    parts: tuple[int, ...]
    pairs: int


def export(
    config: Config, pairs: Product, corpus: Product, out: str, form: str, splits: tuple[str, ...] = SPLITS
) -> dict[str, Any]:
    """Write the kept pairs of `splits` to the place `out`, with README.md and croissant.json; shards that are there
    stay.

    Args:
        form: "webdataset" (`train-000000.tar`: KEY.jpg, KEY.txt, KEY.json) or "datasets"
            (`data/train-00000-of-00009.parquet`).

    Returns:
        What `_EXPORT.json` says: shards with pairs, bytes and sha256, and counts by split, licence, kind and language.

    Raises:
        ConfigError: something else lies at `out`, or nothing is kept.
    """
    place = Place(out)
    content = {"version": VERSION, "form": form, "splits": list(splits)}
    content |= {"pairs": pairs.fingerprint, "corpus": corpus.fingerprint}
    note = _begin(place, content)
    if "shards" in note:
        return note
    shards = plan_shards(corpus, form, splits)
    if not shards:
        raise ConfigError(f"{corpus.uri} keeps no pair of {', '.join(splits)}; look at its ledger counts")
    _write_all(place, shards, pairs, corpus, form)
    with ThreadPoolExecutor(16) as threads:
        marks = list(threads.map(lambda shard: json.loads(place.read(_mark(shard))), shards))
    counts = {
        by: dict(sum((Counter(mark["counts"][by]) for mark in marks), Counter()).most_common()) for by in _COUNTED
    }
    note = content | {"created": corpus.manifest["created"], "sources": sources(pairs), "counts": counts}
    note["shards"] = [mark["shard"] for mark in marks]
    place.write("README.md", readme(note).encode())
    place.write("croissant.json", json.dumps(croissant(note, place.uri), indent=1, ensure_ascii=False).encode())
    place.write(NOTE, json.dumps(note, indent=1, ensure_ascii=False).encode())
    place.at(_MARKS).delete_all()
    return note


def sample_key(pair_id: str) -> str:
    """A WebDataset key: letters, digits, `-` and `_` only, because the first dot of a name ends its key; unique by its
    hash.
    """
    return f"{re.sub('[^A-Za-z0-9-]', '_', pair_id)[:60]}-{hash64(pair_id):016x}"


def plan_shards(
    corpus: Product, form: str, splits: tuple[str, ...], pairs_per_shard: int = PAIRS_PER_SHARD
) -> list[Shard]:
    """The shards of each split in part order, none empty; a part is never cut."""
    with ThreadPoolExecutor(16) as threads:
        sizes = list(threads.map(lambda part: _kept(corpus.read(part, ["split", "kept"])), range(corpus.parts)))
    shards = []
    for split in splits:
        filled: list[tuple[list[int], int]] = []
        for part, size in enumerate(sizes):
            if not size[split]:
                continue
            if not filled or filled[-1][1] + size[split] > pairs_per_shard:
                filled.append(([], 0))
            filled[-1] = ([*filled[-1][0], part], filled[-1][1] + size[split])
        for number, (parts, count) in enumerate(filled):
            name = f"{split}-{number:06d}.tar"
            if form == "datasets":
                name = f"data/{split}-{number:05d}-of-{len(filled):05d}.parquet"
            shards.append(Shard(name, split, tuple(parts), count))
    return shards


def write_shard(shard: Shard, place: Place, pairs: Product, corpus: Product, form: str) -> None:
    """Write one shard, then its mark: the same bytes whenever it is written."""
    tables = [_rows(pairs, corpus, part, shard.split) for part in shard.parts]
    data = _tar(tables) if form == "webdataset" else parquet_bytes(_with_features(pa.concat_tables(tables)))
    counts = {by: Counter(value for table in tables for value in table[by].to_pylist()) for by in _COUNTED}
    counts["language"] = Counter({code or "unknown": n for code, n in counts["language"].items()})
    facts = asdict(shard) | {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del facts["parts"]
    place.write(shard.name, data)
    place.write(_mark(shard), json.dumps({"shard": facts, "counts": counts}).encode())


def _begin(place: Place, content: dict[str, Any]) -> dict[str, Any]:
    """The note of this very export, begun or finished. Raises ConfigError where something else lies there."""
    if place.exists(NOTE):
        note: dict[str, Any] = json.loads(place.read(NOTE))
        if any(note.get(key) != value for key, value in content.items()):
            raise ConfigError(f"--out {place.uri} holds another export ({NOTE}); give an empty folder")
        return note
    if there := next(iter(place.list()), None):
        raise ConfigError(f"--out {place.uri} is not empty (it holds {there}); give an empty folder")
    place.write(NOTE, json.dumps(content).encode())
    return content


def _write_all(place: Place, shards: list[Shard], pairs: Product, corpus: Product, form: str) -> None:
    """Write what is missing, one Ray task a shard."""
    import ray

    from biomedclip_ray.run.capacity import known
    from biomedclip_ray.run.placement import place as place_task

    done = set(place.list(_MARKS))
    missing = [shard for shard in shards if _mark(shard) not in done]
    task = ray.remote(**place_task(known(), 1.0).options)(write_shard)
    shared = [ray.put(value) for value in (place, pairs, corpus)]
    waiting = [task.remote(shard, *shared, form) for shard in missing]
    told = time.monotonic()
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=_LOG_S)
        ray.get(ready)  # raises what the task raised
        if time.monotonic() - told > _LOG_S:
            told = time.monotonic()
            log.info("export: %d of %d shards", len(shards) - len(waiting), len(shards))


def _mark(shard: Shard) -> str:
    return f"{_MARKS}/{shard.name}.json"


def _kept(table: pa.Table) -> Counter[str]:
    return Counter(table["split"].filter(table["kept"]).to_pylist())


def _rows(pairs: Product, corpus: Product, part: int, split: str) -> pa.Table:
    """The kept rows of a split in one part, with the image as Hugging Face has it: {bytes, path}."""
    judged = corpus.read(part, ["pair_id", "split", "group", "kept"])
    table = pairs.read(part, [*FACTS, "image"])
    check_aligned(corpus, pairs, part, judged, table)
    wanted = pc.and_(judged["kept"], pc.equal(judged["split"], split))
    table, judged = table.filter(wanted), judged.filter(wanted)
    paths = pa.array([f"{sample_key(name)}.jpg" for name in table["pair_id"].to_pylist()], pa.string())
    image = pa.StructArray.from_arrays([_flat(table["image"]), paths], ["bytes", "path"])
    columns = {"image": image, **{name: table[name] for name in FACTS}}
    return pa.table(columns | {"split": judged["split"], "group": judged["group"]})


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """One array of a column; a part's images are far below the two gigabytes that its offsets reach."""
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole


def _with_features(table: pa.Table) -> pa.Table:
    """The table with the schema metadata by which `datasets` knows images from bytes."""
    features = {field.name: _feature(field.type) for field in table.schema} | {"image": {"_type": "Image"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _feature(type_: pa.DataType) -> Any:
    if pa.types.is_list(type_):
        return [_feature(type_.value_type)]  # the spelling that old and new versions read
    names = {"float": "float32", "double": "float64"}
    return {"dtype": names.get(str(type_), str(type_)), "_type": "Value"}


def _tar(tables: list[pa.Table]) -> bytes:
    """KEY.jpg, KEY.txt (what trains) and KEY.json (everything else) of each row; no time, no user: same rows, same
    bytes.
    """
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row in (row for table in tables for row in _samples(table)):
            for extension, data in row.items():
                member = tarfile.TarInfo(extension)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def _samples(table: pa.Table) -> Iterator[dict[str, bytes]]:
    for row in table.to_pylist():
        key, image = sample_key(row["pair_id"]), row.pop("image")["bytes"]
        row["phash"] = f"{row['phash']:016x}"  # beyond what JSON's readers hold exactly
        facts = json.dumps(row, ensure_ascii=False).encode()
        yield {f"{key}.jpg": image, f"{key}.txt": row["text"].encode(), f"{key}.json": facts}
