"""Corruptions are the same each time, and each strength changes an image by more than the one below it."""

import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from biomedclip_ray.evaluate.corruptions import KINDS, STRENGTHS, corrupt, summary
from tests.evaluate.test_sets import write_dicom

random = np.random.default_rng(0)
SMOOTH = np.add.outer(np.linspace(30, 200, 96), np.linspace(0, 50, 80))[..., None] + random.normal(
    scale=12, size=(96, 80, 3)
)


def png() -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.clip(SMOOTH, 0, 255).astype(np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)


@pytest.mark.parametrize("kind", KINDS)
def test_more_strength_is_more_change_and_twice_is_the_same(kind):
    data = png()
    changes = [np.abs(pixels(corrupt(data, kind, strength)) - pixels(data)).mean() for strength in STRENGTHS]
    assert all(low < high for low, high in pairwise(changes)), changes
    assert corrupt(data, kind, 3) == corrupt(data, kind, 3)


def test_a_dicom_file_is_made_worse_like_any_image(tmp_path):
    file = tmp_path / "a.dcm"
    write_dicom(file, pixels(png()).astype(np.uint8))
    for kind in KINDS:
        worse = pixels(corrupt(file.read_bytes(), kind, 5))
        assert worse.shape == (96, 80, 3) and np.abs(worse - pixels(png())).mean() > 5


def test_the_drop_is_relative_to_what_is_above_chance():
    found = summary({"blur": [0.8, 0.65, 0.5, 0.5, 0.4]}, clean=0.8, chance=0.5, n=10)
    assert found["kinds"]["blur"]["relative_drop"] == pytest.approx([0, 0.5, 1, 1, 4 / 3])
    assert found["mean_relative_drop"] == pytest.approx(23 / 30)
    assert summary({"blur": [0.4]}, clean=0.4, chance=0.5, n=10)["mean_relative_drop"] is None
