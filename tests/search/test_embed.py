"""The pure parts of the embed stage: which pairs enter, the thumbnail, the map."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from biomedclip_ray.schema import CORPUS
from biomedclip_ray.search.embed import drop_non_finite, plane, select, thumbnail


def test_pairs_that_do_not_enter_are_in_the_ledger_with_their_reason():
    corpus = pa.Table.from_pylist(
        [
            {"pair_id": "a", "split": "train", "kept": True},
            {"pair_id": "b", "split": "test", "kept": True},
            {"pair_id": "c", "split": "train", "kept": False},
            {"pair_id": "d", "split": "validation", "kept": True},
        ],
        schema=CORPUS,
    )
    rows, ledger = select(corpus, ("train", "validation"))
    assert rows.tolist() == [0, 3]
    assert ledger.counts == {"pair": (4, 2)}
    assert {row["id"]: row["reason"] for row in ledger.rows} == {"b": "split_not_embedded", "c": "not_in_corpus"}


def test_a_vector_without_a_direction_is_a_ledger_row_that_names_its_pair():
    _, ledger = select(
        pa.Table.from_pylist([{"pair_id": name, "split": "train", "kept": True} for name in "abcd"], schema=CORPUS),
        ("train",),
    )
    text = np.eye(4, dtype=np.float32)
    image = np.eye(4, dtype=np.float32)
    text[1, 2], image[1, 0], image[2], image[3, 1] = np.nan, np.inf, 0, -np.inf
    assert drop_non_finite(ledger, list("abcd"), {"text": text, "image": image}).tolist() == [True, False, False, False]
    assert ledger.counts == {"pair": (4, 1)}
    assert [(row["id"], row["reason"], row["detail"]) for row in ledger.rows] == [
        ("b", "non_finite", "text vector"),
        ("c", "non_finite", "image vector"),
        ("d", "non_finite", "image vector"),
    ]


@pytest.mark.parametrize(("mode", "size", "expected"), [("RGB", (400, 200), (100, 50)), ("L", (60, 90), (60, 90))])
def test_a_thumbnail_keeps_the_shape_and_is_never_enlarged(mode, size, expected):
    sink = io.BytesIO()
    Image.new(mode, size, 128).save(sink, "JPEG")
    with Image.open(io.BytesIO(thumbnail(sink.getvalue(), 100))) as small:
        assert (small.mode, small.size) == ("RGB", expected)


def test_the_map_s_plane_holds_the_two_largest_variances():
    random = np.random.default_rng(0)
    vectors = (random.normal(size=(500, 6)) * [1, 9, 1, 4, 1, 1] + 5).astype(np.float32)
    mean, x, y = plane(vectors)
    assert np.abs(x).argmax() == 1
    assert np.abs(y).argmax() == 3
    placed = (vectors - mean) @ np.stack([x, y]).T
    assert np.abs(placed).max(axis=0) == pytest.approx([1, 1], abs=1e-4)
    assert abs(np.corrcoef(placed.T)[0, 1]) < 1e-3
    np.testing.assert_allclose(plane(vectors[::-1]), [mean, x, y], atol=1e-5)


def test_a_single_vector_lies_in_the_middle():
    mean, x, y = plane(np.array([[0.6, 0.8]], np.float32))
    assert mean.tolist() == pytest.approx([0.6, 0.8])
    assert np.isfinite([x, y]).all()
