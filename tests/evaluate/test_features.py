"""Vectors are kept by what they are of: nothing is encoded twice, and what has no vector is named with its reason."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.config import Evaluate
from biomedclip_ray.evaluate.bundles import Asked
from biomedclip_ray.evaluate.features import NO_IMAGE, Features, Kept
from biomedclip_ray.evaluate.sets import load_set
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import StageError
from tests.evaluate.conftest import png


@pytest.fixture
def encoder(bundles) -> Encoder:
    return Encoder.load(bundles[0])


def test_kept_vectors_are_the_encoders_and_nothing_is_encoded_twice(encoder, make_set, tmp_path):
    found = load_set(str(make_set()))
    first, again = (Kept(encoder, str(tmp_path / "features"), found) for _ in range(2))
    images = found.tables["test"].images.fetch(0, 30)
    np.testing.assert_allclose(first.images("test"), encoder.encode_images(images), atol=1e-5)
    np.testing.assert_array_equal(again.images("test"), first.images("test"))
    texts = ["a gel", "a cell", "a gel"]
    np.testing.assert_allclose(first.encode_text(texts), encoder.encode_text(texts), atol=1e-5)
    again.encode_text(texts)
    assert first.encoded == {"images": 30, "texts": 2}
    assert again.encoded == {"images": 0, "texts": 0}


def test_the_same_images_in_another_set_are_known(encoder, make_set, tmp_path):
    uri = str(tmp_path / "features")
    Kept(encoder, uri, load_set(str(make_set()))).images("test")
    other = Kept(encoder, uri, load_set(str(make_set("other"))))
    other.images("test")
    assert other.encoded["images"] == 0


def test_a_killed_run_goes_on_with_the_parts_that_are_there(encoder, make_set, tmp_path):
    found = load_set(str(make_set()))
    uri = str(tmp_path / "features")
    Kept(encoder, uri, found).images("train")
    Kept(encoder, uri, found).images("test")
    first = Features(uri).have("images")
    gone = sorted(set(first.values()))[0]
    Place(uri).delete(gone)
    again = Kept(encoder, uri, found)
    again.images("train"), again.images("test")
    assert again.encoded["images"] == 30
    assert Features(uri).have("images").keys() == first.keys()


def broken(folder) -> None:
    """Row 3 has no image, row 7 is no image."""
    table = pq.read_table(folder / "test.parquet").to_pylist()
    table[3]["image"], table[7]["image"] = None, b"no image"
    pq.write_table(pa.Table.from_pylist(table), folder / "test.parquet")


def test_images_without_a_vector_are_left_out_and_named(encoder, make_set, tmp_path):
    folder = make_set()
    broken(folder)
    section = Evaluate(bootstraps=20, max_left_out=0.1)
    rows = Place(str(tmp_path / "r"))
    shown, _ = Asked(encoder, [load_set(str(folder))], str(tmp_path / "f"), section).all(rows)
    left = shown["tiny"]["left_out"]
    assert (left["n"], left["of"]) == (2, 30)
    assert [row["id"] for row in left["rows"]] == ["3", "7"]
    assert left["rows"][0]["reason"] == NO_IMAGE
    assert left["rows"][1]["reason"] == "not an image of a known format"
    assert shown["tiny"]["zero_shot"]["n"] == 28
    with pytest.raises(StageError, match=r"tiny: 2 of 30 images of test have no vector, .* the first is 3: no image"):
        Asked(encoder, [load_set(str(folder))], str(tmp_path / "f"), Evaluate()).all(rows)


def test_a_vector_that_is_not_finite_has_that_as_its_reason(encoder, make_set, tmp_path):
    with torch.no_grad():
        next(encoder.model.visual.parameters()).fill_(float("nan"))
    found = load_set(str(make_set()))
    vectors, reasons, _ = Kept(encoder, str(tmp_path / "features"), found).table("test")
    assert set(reasons) == {"the vector is not finite"} and np.isnan(vectors).all()
    with pytest.raises(StageError, match="30 of 30 images"):
        Asked(encoder, [found], str(tmp_path / "f"), Evaluate(bootstraps=5)).first()


class Odd(Encoder):
    """A tower that fails on a black image."""

    def encode_pixels(self, pixels):
        vectors = super().encode_pixels(pixels)
        vectors[(pixels == 0).flatten(1).all(dim=1).numpy()] = np.nan
        return vectors


def test_one_vector_of_many_that_is_not_finite_is_left_out_by_its_id(bundles, make_set, tmp_path):
    folder = make_set()
    table = pq.read_table(folder / "test.parquet").to_pylist()
    table[5]["image"] = png(np.zeros((24, 24, 3), np.uint8))
    pq.write_table(pa.Table.from_pylist(table), folder / "test.parquet")
    asked = Asked(Odd.load(bundles[0]), [load_set(str(folder))], str(tmp_path / "f"), Evaluate(bootstraps=20))
    found = asked.first()["tiny"]
    assert found["left_out"]["rows"] == [{"id": "5", "reason": "the vector is not finite"}]
    assert found["zero_shot"]["n"] == 29


def test_rows_lie_beside_the_figures(encoder, make_set, tmp_path):
    rows = Place(str(tmp_path / "rows"))
    asked = Asked(encoder, [load_set(str(make_set()))], str(tmp_path / "f"), Evaluate(bootstraps=20))
    first = asked.first()["tiny"]["zero_shot"]["accuracy"]
    shown, written = asked.all(rows)
    assert shown["tiny"]["zero_shot"]["accuracy"] == first
    assert set(written) == {("tiny", "zero_shot"), ("tiny", "linear_probe")}
    table = pq.read_table(io.BytesIO(rows.read("tiny-linear_probe.parquet")))
    right = np.array(table["logits"].to_pylist()).argmax(axis=1) == table["label"].to_numpy()
    assert shown["tiny"]["linear_probe"]["accuracy"]["value"] == pytest.approx(right.mean())
    assert json.dumps(shown)
