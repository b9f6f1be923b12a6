"""One's own image-caption pairs, taken in as PubMed Central's are: the same checks, the same columns, the same ledger.

Their product is of the shape, and lies beside those, of stage preprocess, so that everything behind it takes either.
Beside PMC's pairs nothing is copied: a product whose manifest refers to the files of both costs one small file, not 1.5
TB.

`article_id` and `pmcid` hold a hash of the group (patient) if it is given, else of the record's id, else of the image:
what splits by article splits by patient. A hash keeps plain patient numbers out of products; it does not make data
anonymous.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from biomedclip_ray.config import LICENSES, Config, ConfigError, Own, Preprocess
from biomedclip_ray.figures.captions import language, text_sha256, training_text
from biomedclip_ray.figures.clip_kinds import bundle_id, name_kinds
from biomedclip_ray.figures.kinds import figure_kind
from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.images.image import Prepared, Recipe, decode, file_sha256, prepare_each, prepare_file
from biomedclip_ray.images.reading import Reading
from biomedclip_ray.jats.licenses import license_code
from biomedclip_ray.run.capacity import Capacity
from biomedclip_ray.run.stage import Made, RunParts, Stage
from biomedclip_ray.schema import PAIRS, Reason, hash64, pair_id
from biomedclip_ray.sources.own.images import LargeFile, read_image
from biomedclip_ray.sources.own.record import OwnFiles, Record, group_name
from biomedclip_ray.sources.own_files import records
from biomedclip_ray.store.ahead import each, fetch_ahead
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.erased import Erased
from biomedclip_ray.store.ledger import Count, Ledger, PartResult
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product, data_name, ledger_name

VERSION = 9
UNIT = "picture"
_SPLITS = {"train": "train", "training": "train", "test": "test"}
_SPLITS |= dict.fromkeys(("validation", "val", "valid", "dev"), "validation")
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,80}")
_AHEAD = 32  # images in memory at once
_KEY = "own_patient.key"
_NOT_ITS_ROWS = ("uri", "alone", "patient_key", "transient_limit", "resources")
"""Keys of the section; what the files and the key say is hashed in their place."""


def _content(config: Config, files: OwnFiles) -> dict[str, Any]:
    """Raises ConfigError where preprocess.kinds.bundle cannot be read."""
    content = config.own.content(exclude=_NOT_ITS_ROWS)
    content |= {"files": files.checksum, "pictures": asdict(Recipe.of(config.preprocess))}
    if config.own.patient_key is not None:
        content["patient_key"] = hashlib.sha256(_patient_key(config)).hexdigest()[:16]
    return {"own": content | {"kinds": bundle_id(config.preprocess.kinds)}}


def _work(attempt: Attempt, run_parts: RunParts, config: Config, files: OwnFiles) -> Made:
    """Raises ConfigError where not one image became a pair."""
    attempt.parts = len(files.pieces)
    key = _patient_key(config)
    args = (attempt.product, files, config.own, config.preprocess, config.source.resources.threads, key)
    run_parts(_part, config.own.resources, args)
    _drop_repeated(attempt)
    _refuse_nothing(attempt, config.own)
    return Made(transient_limit=config.own.transient_limit)


def _fit(config: Config, capacity: Capacity, *_: Any) -> list[str]:
    return capacity.lacks("own.resources", config.own.resources)


own_pairs = Stage("preprocess", VERSION, _content, _work, fit=_fit)
"""Reads one's own files; the pairs they lead to."""


def _beside_content(config: Config, pairs: Product, own: Product) -> dict[str, Any]:
    return {"beside": config.own.name}


def _put_beside(attempt: Attempt, run_parts: RunParts, config: Config, pairs: Product, own: Product) -> Made:
    """Refer to the files of both, PMC's parts first."""
    files: list[dict[str, Any]] = []
    for source in (pairs, own):
        first = len(files) // 2
        there = {file["name"]: file for file in source.manifest["files"]}
        for part in range(source.parts):
            for named in (data_name, ledger_name):
                at = f"{source.stage}/{source.fingerprint}/{named(part)}"
                files.append(there[named(part)] | {"name": named(first + part), "at": at})
    rows = sum(file["rows"] for file in files if file["name"].startswith("data/"))
    return Made({"parts": len(files) // 2, "files": files}, counts=(Count("pair", rows, rows),))


side_by_side = Stage("preprocess", VERSION, _beside_content, _put_beside)
"""Reads PMC's pairs and one's own: both as one product, nothing copied."""


def _patient_key(config: Config) -> bytes:
    """What keys the hash of DICOM's PatientID. Raises ConfigError where own.patient_key cannot be read."""
    if config.own.patient_key is not None:
        folder, _, name = Place(config.own.patient_key).uri.rpartition("/")
        try:
            return Place(folder).read(name)
        except OSError as error:
            raise ConfigError(f"own.patient_key={config.own.patient_key} cannot be read: {error}") from error
    root = Place(config.root)
    try:
        return root.read(_KEY)
    except FileNotFoundError:
        root.write(_KEY, secrets.token_bytes(32))
        return root.read(_KEY)


def _part(
    part: int, product: Product, files: OwnFiles, own: Own, config: Preprocess, threads: int, key: bytes
) -> PartResult:
    ledger = Ledger("preprocess")
    rows: dict[str, dict[str, Any]] = {}
    came_in = 0
    erased = Erased.load(product.root)
    with ThreadPoolExecutor(threads) as pool:
        found = records(files, files.pieces[part])
        for record, image in fetch_ahead(pool, lambda r: _bytes_of(files, r), found, ahead=_AHEAD):
            for row in _pairs(record, image, part, own, config, key):
                came_in += 1
                if isinstance(row, ImageError):
                    ledger.drop(UNIT, record.where, row.reason, row.detail)
                    continue
                if erased.has(row["pair_id"]):
                    ledger.drop(UNIT, record.where, Reason.ERASED)
                    continue
                if row["pair_id"] in rows:
                    ledger.drop(UNIT, record.where, Reason.DUPLICATE, row["pair_id"])
                rows.setdefault(row["pair_id"], row)
    name_kinds(list(rows.values()), config.kinds, product.config["own"]["kinds"])
    ledger.count(UNIT, came_in, len(rows))
    return PartResult(pa.Table.from_pylist([rows[name] for name in sorted(rows)], schema=PAIRS), ledger)


def _drop_repeated(attempt: Attempt) -> None:
    """Send to the ledger what an earlier part has too: parts are made without knowing of each other.

    Eight bytes a pair are held; only parts whose hashes meet are read whole.
    """
    ids = (table["pair_id"].to_pylist() for table in attempt.scan(["pair_id"]))
    hashes = [np.fromiter(map(hash64, names), np.uint64, len(names)) for names in ids]
    values, times = np.unique(np.concatenate(hashes), return_counts=True)
    meeting = values[times > 1]
    seen: set[str] = set()
    for part in range(attempt.parts or 0):
        if not np.isin(hashes[part], meeting).any():
            continue
        rows = attempt.read(part)
        names = rows["pair_id"].to_pylist()
        fresh = pa.array([name not in seen for name in names], pa.bool_())
        seen.update(names)
        repeated = rows.filter(pc.invert(fresh)).select(["media_name", "pair_id"]).to_pylist()
        if repeated:
            _write_without(attempt, part, rows.filter(fresh), repeated)


def _refuse_nothing(attempt: Attempt, own: Own) -> None:
    """Stop where no pair was kept: what comes behind would fail far from the cause.

    Raises:
        ConfigError: with the commonest reasons.
    """
    if any(table.num_rows for table in attempt.scan(["pair_id"])):
        return
    ledger = pa.concat_tables(each(range(attempt.parts or 0), attempt.read_ledger))
    if pc.sum(ledger["transient"]).as_py():
        return  # to be tried again
    counts = Counter(ledger["reason"].to_pylist()).most_common(3)
    first = dict(zip(reversed(ledger["reason"].to_pylist()), reversed(ledger.to_pylist()), strict=True))
    reasons = "; ".join(
        f"{n:,} {reason} ({Reason(reason).sentence}), as {first[reason]['id']}: "
        f"{first[reason]['detail'] or 'no more is known'}"
        for reason, n in counts
    )
    raise ConfigError(f"own.uri={own.uri}: none of {ledger.num_rows:,} images became a pair: {reasons}")


def _write_without(attempt: Attempt, part: int, rows: pa.Table, repeated: list[dict[str, Any]]) -> None:
    ledger = Ledger("preprocess")
    ledger.rows = attempt.read_ledger(part).to_pylist()
    for row in repeated:
        ledger.drop(UNIT, row["media_name"], Reason.DUPLICATE, row["pair_id"])
    ledger.count(UNIT, rows.num_rows + len(ledger.rows), rows.num_rows)
    attempt.place.delete(ledger_name(part))  # until both files are new, the part is not done
    attempt.write_part(part, rows, ledger.table(), ledger.counts)


def _bytes_of(files: OwnFiles, record: Record) -> bytes | LargeFile | ImageError:
    """The image's bytes, or why there are none."""
    try:
        return read_image(files, record)
    except ImageError as error:
        return error


def _pairs(
    record: Record, image: bytes | LargeFile | ImageError, part: int, own: Own, config: Preprocess, key: bytes
) -> Iterator[dict[str, Any] | ImageError]:
    """A row of PAIRS, or why there is none, for each image that the record's file is asked for."""
    split = _SPLITS.get((record.split or "").lower())
    text = training_text(record.text)
    if isinstance(image, ImageError):
        yield image
    elif record.split is not None and split is None:
        yield ImageError(Reason.BAD_SPLIT, record.split)
    elif not text:
        yield ImageError(Reason.NO_CAPTION)
    elif isinstance(image, LargeFile):
        with image.on_disk() as path:
            record = replace(record, id=record.id or file_sha256(path)[:16])
            for prepared in prepare_file(path, _reading(own), Recipe.of(config)):
                yield (
                    prepared
                    if isinstance(prepared, ImageError)
                    else _pair(record, prepared, text, split, part, own, key)
                )
    else:
        # frames and tiles of one file are one figure, and never stand in two splits
        record = replace(record, id=record.id or hashlib.sha256(image).hexdigest()[:16])
        for prepared in prepare_each(image, _reading(own), Recipe.of(config)):
            yield prepared if isinstance(prepared, ImageError) else _pair(record, prepared, text, split, part, own, key)


def _reading(own: Own) -> Reading:
    return Reading(own.frames, own.tiles, own.burned_in)


def _keyed(patient: str, key: bytes) -> str:
    """The group of a DICOM's PatientID."""
    return f"patient {hmac.new(key, patient.encode(), hashlib.sha256).hexdigest()}"


def ids_of(config: Config, name: str) -> frozenset[str]:
    """What a patient, or a record by its own id where it names no patient, may be called in products; the name itself
    too.
    """
    groups = {group_name(name) or name, _keyed(name, _patient_key(config))}
    hashed = {hash64(f"group {group}") for group in groups} | {hash64(name)}
    return frozenset({name, *(f"{config.own.name}-{number:016x}" for number in hashed)})


def _pair(
    record: Record, prepared: Prepared, text: str, split: str | None, part: int, own: Own, key: bytes
) -> dict[str, Any]:
    """A row of PAIRS."""
    if record.group is None and prepared.patient is not None:
        record = replace(record, group=_keyed(prepared.patient, key))
    kind, score = figure_kind(decode(prepared.jpeg), text)
    text_hash = text_sha256(text)
    ids = _ids(record, prepared, text_hash, own.name)
    return dict.fromkeys(PAIRS.names) | {
        **ids,
        "part": part,
        "panel": 0,
        "is_table": False,
        "caption": record.text,
        "text": text,
        "mentions": [],
        "language": language(text),
        "adapted": False,
        **prepared.columns(),
        "media_name": record.image if isinstance(record.image, str) else record.where,
        "text_sha256": text_hash,
        "figure_kind": kind,
        "figure_kind_score": score,
        "license": _license(record.license, own.license),
        "journal": own.name,
        "keywords": [],
        "source_split": split,
    }


def _license(stated: str | None, otherwise: str) -> str:
    """The code of the licence that a record states; `otherwise` is for those that state none, not for those nobody
    knows.
    """
    if stated is None or not stated.strip():
        return otherwise
    return stated if stated in LICENSES else license_code(stated) or "unknown"


def _ids(record: Record, prepared: Prepared, text_hash: str, name: str) -> dict[str, str]:
    """`own-<hash of the group>/<id>/<hash of the content>#0`: one id with several images or texts is one figure."""
    figure = record.id or ""
    article = f"{name}-{hash64(f'group {record.group}' if record.group else figure):016x}"
    figure_id = f"{article}/{figure if _PLAIN_ID.fullmatch(figure) else f'{hash64(figure):016x}'}"
    content = hashlib.sha256(f"{prepared.sha256} {text_hash}".encode()).hexdigest()[:12]
    return {"pair_id": pair_id(figure_id, content, 0), "article_id": article, "pmcid": article, "figure_id": figure_id}
