"""Damaged bytes: whatever comes, `prepare` gives an image or an ImageError, quickly and without eating memory."""

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.images.image import Recipe, decode, prepare

SEEDS = ("JPEG", "JPEG CMYK", "JPEG EXIF", "PNG", "PNG 16", "GIF", "TIFF", "TIFF LZW", "TIFF 16", "WEBP", "BMP")
SEEDS += ("JPEG2000", "JPEG-XL", "OME", "DICOM", "DICOM RLE", "DICOM J2K", "NIfTI")


@lru_cache
def sound(name: str) -> bytes:
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    image, kind = Image.fromarray(pixels), name.split()[0]
    if kind == "DICOM":
        file = {"DICOM RLE": "MR_small_RLE", "DICOM J2K": "MR_small_jp2klossless"}.get(name, "MR_small")
        return (Path(pydicom.__file__).parent / "data" / "test_files" / f"{file}.dcm").read_bytes()
    if kind == "NIfTI":
        return bytes(nibabel.Nifti1Image(pixels[:, :, :2].astype(np.int16), np.eye(4)).to_bytes())
    if kind == "JPEG-XL":
        return bytes(imagecodecs.jpegxl_encode(pixels, lossless=True))
    if kind == "OME":
        file_ = io.BytesIO()
        tifffile.imwrite(
            file_, pixels.transpose(2, 0, 1).copy(), ome=True, metadata={"axes": "CYX"}, photometric="minisblack"
        )
        return file_.getvalue()
    options: dict[str, Any] = {}
    if name.endswith("CMYK"):
        image = image.convert("CMYK")
    elif name.endswith("EXIF"):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    elif name.endswith("16"):
        image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 200)
    elif name.endswith("LZW"):
        options["compression"] = "tiff_lzw"
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(sound(draw(st.sampled_from(SEEDS))))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("flip", "cut", "insert", "number", "repeat")))
        if kind == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del data[at : at + draw(st.sampled_from((1, 2, 4, 100, 10_000)))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        elif kind == "number":  # the largest and smallest numbers are where lengths and offsets break
            data[at : at + 4] = draw(
                st.sampled_from((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1"))
            )
        else:
            data[at:at] = data[at : at + 200]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@seed(20261120)
@settings(
    max_examples=int(os.environ.get("BIOMEDCLIP_FUZZ_EXAMPLES", "400")),
    deadline=5000,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(damaged())
def test_damaged_bytes_give_a_picture_or_a_reason(data: bytes) -> None:
    recipe = Recipe(short_side=40, quality=90, min_side=8, max_pixels=4_000_000, max_aspect=12.0)
    try:
        picture = prepare(data, recipe)
    except ImageError as error:
        assert error.reason.sentence
    else:
        assert decode(picture.jpeg).shape == (picture.height, picture.width, 3)
        assert picture.original_width * picture.original_height <= recipe.max_pixels


@pytest.mark.filterwarnings("ignore")
@seed(20261121)
@settings(max_examples=150, deadline=2000, database=None)
@given(
    st.sampled_from((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"RIFF\x10\0\0\0WEBP")),
    st.binary(max_size=400),
)
def test_noise_behind_a_signature_gives_a_reason(signature: bytes, noise: bytes) -> None:
    with pytest.raises(ImageError):
        prepare(signature + noise, Recipe(40, 90, 8, 1_000_000, 12))
