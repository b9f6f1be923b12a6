"""The stage over pairs on disk: copies in other bytes are found by their images, wherever they lie."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import simplejpeg

from biomedclip_ray.config import Config, parse
from biomedclip_ray.corpus import curate as stage
from biomedclip_ray.corpus import looks
from biomedclip_ray.corpus.curate import curate
from biomedclip_ray.images.image import decode
from biomedclip_ray.images.phash import perceptual_hash
from biomedclip_ray.run.parts import in_process
from biomedclip_ray.schema import PAIRS
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.ledger import Ledger
from biomedclip_ray.store.product import Product

# The splits of these articles by hash, with the default shares.
TRAIN, TRAIN_TOO, TEST = "PMC1", "PMC2", "PMC14"


def _figure(seed: int) -> np.ndarray:
    """Blurred noise with a bar: an image that is like no other."""
    noise = np.random.default_rng(seed).normal(0, 1, (200, 260, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 18)
    pixels = 128 + 100 * smooth / np.abs(smooth).max()
    return pixels.astype(np.uint8)


def _row(pmcid: str, name: str, pixels: np.ndarray, text: str, quality: int = 90) -> dict[str, Any]:
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality)
    values: dict[str, Any] = dict.fromkeys(PAIRS.names)
    return values | {
        "pair_id": f"{pmcid}.1/{name}#0",
        "article_id": f"{pmcid}.1",
        "pmcid": pmcid,
        "figure_id": f"{pmcid}.1/{name}",
        "panel": 0,
        "text": text,
        "image": jpeg,
        "sha256": hashlib.sha256(jpeg).hexdigest(),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "phash": perceptual_hash(decode(jpeg)),
        "license": "CC BY",
        "figure_kind": "chart",
    }


def _pairs(root: Path, parts: list[list[dict[str, Any]]]) -> Product:
    product = Product.plan(str(root), "preprocess", 1, {}, [])
    with attempt(product, len(parts)) as current:
        for part, rows in enumerate(parts):
            current.write_part(
                part, pa.Table.from_pylist(rows, schema=PAIRS), Ledger("preprocess").table(), {"picture": (0, 0)}
            )
        current.finish_parts(0.0)
    return product


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return parse({"root": str(tmp_path), "curate": {"splits": {"validation": 0.05, "test": 0.15}}}, "test")


def _fates(product: Product) -> dict[str, str | None]:
    return {
        row["pair_id"].split(".")[0] + row["pair_id"][-4:]: row["reason"]
        for t in product.scan()
        for row in t.to_pylist()
    }


def test_a_recompressed_copy_in_another_part_is_one_group_and_leaves_the_lower_split(
    config: Config, tmp_path: Path
) -> None:
    picture = _figure(1)
    smaller = cv2.resize(picture, (130, 100), interpolation=cv2.INTER_AREA)
    pairs = _pairs(
        tmp_path,
        [
            [_row(TRAIN, "F1", picture, "A liver."), _row(TRAIN, "F2", _figure(2), "A kidney.")],
            [],
            [_row(TEST, "F1", smaller, "A liver, again.", quality=60), _row(TRAIN_TOO, "F3", _figure(3), "A heart.")],
        ],
    )
    product = curate.run(config, pairs, runner=in_process).product
    rows = {row["pair_id"]: row for table in product.scan() for row in table.to_pylist()}
    copy, original = rows[f"{TEST}.1/F1#0"], rows[f"{TRAIN}.1/F1#0"]
    assert (copy["split"], original["split"]) == ("test", "train")
    assert copy["group"] == original["group"]
    assert {row["pair_id"]: row["reason"] for row in rows.values() if not row["kept"]} == {
        f"{TRAIN}.1/F1#0": "split_conflict"
    }
    assert product.manifest["near"] == {
        "bits": 4,
        "pictures": 4,
        "near_hashes": 1,
        "pictures_read": 2,
        "confirmed": 1,
        "crowded": 0,
    }
    assert product.manifest["leakage"] == {"articles": 0, "groups": 0, "pictures": 0, "near_pairs": 0}
    assert product.manifest["shared_texts"] == 0


def test_tasks_of_any_size_decide_the_same(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies chain over parts: looked at in shards of two pairs, an image of theirs is needed in several."""
    rows = [
        _row(f"PMC{n}", f"F{n % 2}", _figure(n % 4), f"Figure {n % 3}, in words.", quality=50 + n) for n in range(18)
    ]
    pairs = _pairs(tmp_path, [rows[at : at + 3] for at in range(0, len(rows), 3)])
    whole = curate.run(config, pairs, runner=in_process).product
    found, facts = pa.concat_tables(whole.scan()), whole.manifest["near"]
    assert facts["confirmed"] > 20
    whole.place.delete_all()
    for module, name, value in ((stage, "_CHUNK", 2), (looks, "SHARD", 2), (looks, "PARTS", 1)):
        monkeypatch.setattr(module, name, value)
    again = curate.run(config, pairs, runner=in_process).product
    assert pa.concat_tables(again.scan()) == found
    assert again.manifest["near"] == facts


def test_without_near_bits_a_copy_in_other_bytes_is_another_picture(config: Config, tmp_path: Path) -> None:
    picture = _figure(1)
    rows = [_row(TRAIN, "F1", picture, "A liver."), _row(TRAIN_TOO, "F1", picture, "A liver.", quality=60)]
    exact = config.model_copy(update={"curate": config.curate.model_copy(update={"near_bits": None})})
    pairs = _pairs(tmp_path, [rows])
    assert [
        row["reason"] for t in curate.run(exact, pairs, runner=in_process).product.scan() for row in t.to_pylist()
    ] == [None, None]
    assert [
        row["reason"] for t in curate.run(config, pairs, runner=in_process).product.scan() for row in t.to_pylist()
    ].count("duplicate") == 1


def test_only_pictures_whose_hashes_are_near_are_read(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [_row(TRAIN, f"F{n}", _figure(n), f"Figure number {n}.") for n in range(20)]
    rows.append(_row(TRAIN_TOO, "F1", _figure(7), "Figure seven.", quality=70))
    decoded: list[bytes] = []

    def watched(jpeg: bytes) -> np.ndarray:
        decoded.append(jpeg)
        return decode(jpeg)

    monkeypatch.setattr(looks, "decode", watched)
    curate.run(config, _pairs(tmp_path, [rows[:12], rows[12:]]), runner=in_process)
    assert sorted(decoded) == sorted([rows[7]["image"], rows[20]["image"]])


def test_kinds_licences_and_panels_that_are_not_selected_have_their_reasons(config: Config, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"figure_kind": "gel"},
        {"figure_kind": "photograph"},
        {"license": "CC BY-NC"},
        {"license": "unknown"},
        {"panel": 1},
        {"text": "Gel."},
    ]
    rows = [_row(TRAIN, f"F{n}", _figure(n), f"Figure {n}.") | change for n, change in enumerate(changes)]
    select = {"kinds": ["chart", "gel"], "licenses": "commercial", "panels": False}
    config = parse(config.model_dump(mode="json") | {"curate": {"select": select}}, "test")
    product = curate.run(config, _pairs(tmp_path, [rows]), runner=in_process).product
    reasons = [row["reason"] for table in product.scan() for row in table.to_pylist()]
    assert reasons == [None, None, "curate_kind", "curate_license", "curate_license", "curate_panel", "short_text"]


def test_a_corpus_without_a_pair_is_finished(config: Config, tmp_path: Path) -> None:
    product = curate.run(config, _pairs(tmp_path, [[], []]), runner=in_process).product
    assert product.finished
    assert product.manifest["near"]["pictures"] == 0
