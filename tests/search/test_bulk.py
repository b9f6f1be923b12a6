"""One's own images and texts to vectors, part by part, in this process."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from biomedclip_ray.clip.bundle import save_bundle
from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.clip.model import build_model
from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import ConfigError, Model, parse
from biomedclip_ray.run.parts import in_process
from biomedclip_ray.search import bulk
from biomedclip_ray.search.bulk import find, vectors
from biomedclip_ray.search.embed import NonFiniteError
from biomedclip_ray.store.product import Product, ledger_name

TEXTS = [f"a gel with {n} lanes" for n in range(30)]


def jpeg(seed: int, form: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, form)
    return sink.getvalue()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> str:
    tokenizer = fit_tokenizer(TEXTS, 300, 32)
    torch.manual_seed(0)
    built = build_model(Model(config="sample_64", init="random"), tokenizer)
    folder = tmp_path_factory.mktemp("bundle")
    save_bundle(folder, built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {})
    return str(folder)


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(bulk, "FILES_PER_PART", 4)
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for n in range(9):
        (folder / f"{n}.jpg").write_bytes(jpeg(n))
    (folder / "deep" / "x.png").write_bytes(jpeg(20, "PNG"))
    (folder / "cut.jpg").write_bytes(jpeg(21)[:300])
    (folder / "none.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not an image")
    return folder


def embed(bundle: str, inputs: bulk.Inputs, root: Path) -> tuple[str, Product]:
    config = parse({"root": str(root), "embed": {"batch": 3}}, "test")
    outcome = vectors.run(config, bundle, inputs, runner=in_process)
    return outcome.state, outcome.product


def rows(product: Product) -> dict[str, list[float]]:
    return {row["id"]: row["vector"] for table in product.scan(["id", "vector"]) for row in table.to_pylist()}


def test_every_image_of_a_folder_has_its_vector_or_a_ledger_row(bundle, images, tmp_path):
    inputs = find(str(images), "image")
    assert [len(part) for part in inputs.parts] == [4, 4, 4]
    state, product = embed(bundle, inputs, tmp_path / "out")
    assert state == "ran"
    found = rows(product)
    names = [f"{n}.jpg" for n in range(9)] + ["deep/x.png"]
    assert sorted(found) == sorted(names)
    expected = Encoder.load(bundle).encode_images([(images / name).read_bytes() for name in names])
    np.testing.assert_allclose([found[name] for name in names], expected, atol=1e-5)
    assert {row["id"]: row["reason"] for row in product.ledger().to_pylist()} == {
        "cut.jpg": "truncated_image",
        "none.png": "broken_image",
    }
    (count,) = product.manifest["counts"]
    assert (count["unit"], count["in"], count["kept"]) == ("image", 12, 10)


def test_an_interrupted_one_goes_on_a_finished_one_is_skipped_and_a_changed_folder_is_made_anew(
    bundle, images, tmp_path
):
    _, first = embed(bundle, find(str(images), "image"), tmp_path / "out")
    before = rows(first)
    assert embed(bundle, find(str(images), "image"), tmp_path / "out")[0] == "skipped"
    first.place.delete("_MANIFEST.json")
    first.place.delete(ledger_name(1))
    state, again = embed(bundle, find(str(images), "image"), tmp_path / "out")
    assert (state, again.fingerprint, sorted(rows(again))) == ("resumed", first.fingerprint, sorted(before))
    (images / "9.jpg").write_bytes(jpeg(9))
    state, more = embed(bundle, find(str(images), "image"), tmp_path / "out")
    assert state == "ran"
    assert set(rows(more)) - set(before) == {"9.jpg"}


@pytest.mark.parametrize("form", ["bytes", "huggingface"])
def test_a_column_of_images_is_a_part_for_each_row_group(bundle, tmp_path, form):
    values = [jpeg(n) for n in range(5)] + [None]
    column = values if form == "bytes" else [{"bytes": value, "path": "x"} for value in values]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"picture": column}), tmp_path / "in" / "t.parquet", row_group_size=4)
    for uri in (tmp_path / "in", tmp_path / "in" / "t.parquet"):
        inputs = find(str(uri), "image", "picture")
        assert len(inputs.parts) == 2
        _, product = embed(bundle, inputs, tmp_path / f"out-{uri.name}")
        found = rows(product)
        assert sorted(found) == [f"t.parquet#{n}" for n in range(5)]
        np.testing.assert_allclose(found["t.parquet#4"], Encoder.load(bundle).encode_images([values[4]])[0], atol=1e-5)
        assert product.ledger()["id"].to_pylist() == ["t.parquet#5"]


def test_texts_come_from_a_column_or_line_by_line(bundle, tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"t": [*TEXTS[:4], None]}), tmp_path / "in" / "t.parquet")
    (tmp_path / "in" / "t.txt").write_text("\n".join([*TEXTS[:4], "", "β-catenin"]))
    expected = Encoder.load(bundle).encode_text(TEXTS[:4])
    for column, name in (("t", "t.parquet"), (None, "t.txt")):
        _, product = embed(bundle, find(str(tmp_path / "in"), "text", column), tmp_path / f"out-{name}")
        found = rows(product)
        np.testing.assert_allclose([found[f"{name}#{n}"] for n in range(4)], expected, atol=1e-5)
        assert product.ledger()["id"].to_pylist() == [f"{name}#4"]


@pytest.mark.parametrize(
    ("unit", "column", "message"),
    [
        ("image", None, "no image file there; of Parquet files name the column"),
        ("text", None, "no .txt file"),
        ("image", "other", "has no column 'other'; it has picture"),
    ],
)
def test_a_folder_that_holds_nothing_to_embed_is_named(tmp_path, unit, column, message):
    pq.write_table(pa.table({"picture": [b""]}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=message):
        find(str(tmp_path), unit, column)


def test_a_broken_bundle_is_an_error_that_says_so(bundle, tmp_path, images):
    broken = Encoder.load(bundle, packed=False)
    with torch.no_grad():
        broken.model.visual.proj[:] = float("nan")
    info = broken.info
    save_bundle(tmp_path / "nan", broken.model, info["model_cfg"], info["preprocess_cfg"], broken.tokenizer, {})
    with pytest.raises(NonFiniteError, match="10 of 10 images have a non-finite vector"):
        embed(str(tmp_path / "nan"), find(str(images), "image"), tmp_path / "out")
