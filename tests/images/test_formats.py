"""The table of formats, and the places that read it."""

import io
import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from biomedclip_ray.images import pillow
from biomedclip_ray.images.errors import ImageError, Limits
from biomedclip_ray.images.formats import ARTICLE_EXTENSIONS, FORMATS, ONLINE_NAMES, PICKER, has_extension, identify
from biomedclip_ray.images.image import as_pillow, read, size
from biomedclip_ray.schema import Reason
from biomedclip_ray.serve.inputs import Refusal, check_image

ANY = Limits(1, 10**9, 1e9)


def scene(width: int = 120, height: int = 80) -> np.ndarray:
    x, y = np.linspace(0, 1, width)[None, :], np.linspace(0, 1, height)[:, None]
    planes = (40 + 120 * (x + 0 * y), 60 + 100 * (y + 0 * x), 200 - 120 * x * y)
    return np.stack(planes, axis=2).round().astype(np.uint8)


def saved(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


ENCODED = {
    "JPEG": lambda: saved(scene(), "JPEG", quality=100, subsampling=0),
    "PNG": lambda: saved(scene(), "PNG"),
    "TIFF": lambda: saved(scene(), "TIFF"),
    "WEBP": lambda: saved(scene(), "WEBP", lossless=True),
    "BMP": lambda: saved(scene(), "BMP"),
    "GIF": lambda: saved(scene()[:, :, 0], "GIF"),
    "JPEG 2000": lambda: imagecodecs.jpeg2k_encode(scene(), level=0),
    "JPEG XL": lambda: imagecodecs.jpegxl_encode(scene(), lossless=True),
    "JPEG-LS": lambda: imagecodecs.jpegls_encode(np.tile(scene(), (4, 4, 1))),
}


@pytest.mark.parametrize("name", ENCODED)
def test_each_format_is_told_by_its_bytes_measured_and_decoded(name: str) -> None:
    data = ENCODED[name]()
    assert identify(data).name == name
    found = read(data, ANY)
    assert found.format == name
    assert size(data) == (found.width, found.height)
    expected = np.tile(scene(), (4, 4, 1)) if name == "JPEG-LS" else scene()
    if name == "GIF":
        expected = np.repeat(scene()[:, :, :1], 3, axis=2)
    assert np.abs(found.pixels.astype(int) - expected).max() <= (6 if name == "JPEG" else 0)


def test_bitmaps_whose_fourth_byte_is_nothing_are_no_white_images() -> None:
    """BI_RGB of 32 bits, and a V5 header with an alpha mask whose alpha is 0 everywhere: ultrasound machines write
    both.
    """
    rows = np.dstack([scene()[::-1, :, ::-1], np.zeros((80, 120), np.uint8)]).tobytes()
    plain = struct.pack("<IiiHHIIiiII", 40, 120, 80, 1, 32, 0, len(rows), 0, 0, 0, 0)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    fifth = struct.pack("<IiiHHIIiiII", 124, 120, 80, 1, 32, 3, len(rows), 0, 0, 0, 0) + masks + bytes(124 - 56)
    for header in (plain, fifth):
        data = b"BM" + struct.pack("<IHHI", 14 + len(header) + len(rows), 0, 0, 14 + len(header)) + header + rows
        assert np.array_equal(read(data, ANY).pixels, scene())
    opaque = np.dstack([scene()[::-1, :, ::-1], np.full((80, 120), 128, np.uint8)]).tobytes()
    data = b"BM" + struct.pack("<IHHI", 14 + 124 + len(opaque), 0, 0, 14 + 124) + fifth + opaque
    assert read(data, ANY).pixels.min() > scene().min() + 60  # half transparent on white


@pytest.mark.parametrize(("bits", "process"), [(12, "extended"), (8, "lossless"), (12, "lossless"), (16, "lossless")])
def test_hospitals_jpegs_are_read(bits: int, process: str) -> None:
    top = (1 << bits) - 1
    grey = np.tile(np.linspace(0, top, 120).astype(np.uint16 if bits > 8 else np.uint8), (80, 1))
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    data = imagecodecs.jpeg8_encode(colour, bitspersample=bits, lossless=process == "lossless", level=100)
    found = read(data, ANY)
    assert found.format == "JPEG"
    assert np.abs(found.pixels[:, :, 1].astype(int) - np.rint(grey * (255 / top))).max() <= 3


def test_twelve_bits_in_jpeg_2000_xl_and_ls_are_shown_by_their_range() -> None:
    grey = np.tile(np.linspace(100, 4000, 120).astype(np.uint16), (80, 1))
    for data in (
        imagecodecs.jpeg2k_encode(grey, level=0, bitspersample=12),
        imagecodecs.jpegxl_encode(grey, lossless=True),
        imagecodecs.jpegls_encode(grey),
    ):
        found = read(data, ANY)
        assert np.abs(found.pixels[:, :, 0].astype(int) - np.rint((grey - 100) * (255 / 3900))).max() <= 1
        assert found.note == "100 to 4000 shown as black to white"


@pytest.mark.parametrize(
    ("start", "name"),
    [(b"ZISRAWFILE", "Zeiss CZI"), (b"MATRIX72v", "ECAT"), (b"\0\0\0\x18ftypheic", "HEIF"), (b"CDF\x01", "MINC 1")],
)
def test_what_is_known_and_not_read_names_the_way_out(start: bytes, name: str) -> None:
    with pytest.raises(ImageError) as caught:
        identify(start + bytes(400))
    assert caught.value.reason is Reason.NOT_SUPPORTED
    assert caught.value.detail.startswith(name) and ": save it as" in caught.value.detail


def test_every_place_reads_the_one_table() -> None:
    assert len({row.name for row in FORMATS}) == len(FORMATS)
    assert has_extension("a/B.TIFF") and has_extension("x.nii.gz") and not has_extension("x.gz")
    assert ARTICLE_EXTENSIONS[:2] == ("jpg", "jpeg") and ARTICLE_EXTENSIONS.index("bmp") < ARTICLE_EXTENSIONS.index(
        "gif"
    )
    assert "dcm" not in ARTICLE_EXTENSIONS and ".dcm" in PICKER.split(",") and "image/bmp" in PICKER
    assert "DICOM" in ONLINE_NAMES and "whole slide" not in ONLINE_NAMES


@pytest.mark.parametrize("name", ENCODED)
def test_what_is_taken_in_is_taken_online_and_seen_alike(name: str) -> None:
    data = ENCODED[name]()
    check_image(data, "input", 10**6)
    seen = np.asarray(as_pillow(data).convert("RGB"))
    assert np.abs(seen.astype(int) - read(data, ANY).pixels).max() <= 1
    with pytest.raises(Refusal) as caught:
        check_image(data, "input", 100)
    assert caught.value.code == "too_many_pixels"


def test_deep_images_and_channels_are_seen_online_as_training_saw_them() -> None:
    channels = np.zeros((2, 80, 120), np.uint16)
    channels[0, 20:40, 20:40], channels[1, 50:70, 60:90] = 900, 3000
    out = io.BytesIO()
    tifffile.imwrite(out, channels, photometric="minisblack", ome=True, metadata={"axes": "CYX"})
    deep = imagecodecs.png_encode(np.dstack([channels[0], channels[1], channels[0]]))
    for data in (out.getvalue(), bytes(deep)):
        assert np.array_equal(np.asarray(as_pillow(data)), read(data, ANY).pixels)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize(
    "kind", ["12 bits", "lossless", "JPEG-LS", "JPEG 2000", "JPEG XL", "JPEG 2000 of 8", "PNG of 16", "BMP"]
)
def test_a_cut_file_of_hospitals_codecs_is_truncated(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 4095, (90, 120, 3)).astype(np.uint16)
    data = {
        "12 bits": lambda: imagecodecs.jpeg8_encode(noise, bitspersample=12),
        "lossless": lambda: imagecodecs.jpeg8_encode(noise, bitspersample=12, lossless=True),
        "JPEG-LS": lambda: imagecodecs.jpegls_encode(noise),
        "JPEG 2000": lambda: imagecodecs.jpeg2k_encode(noise, level=0, bitspersample=12),
        "JPEG XL": lambda: imagecodecs.jpegxl_encode(noise, lossless=True),
        "JPEG 2000 of 8": ENCODED["JPEG 2000"],
        "PNG of 16": lambda: imagecodecs.png_encode(noise),
        "BMP": ENCODED["BMP"],
    }[kind]()
    with pytest.raises(ImageError) as caught:
        read(bytes(data[: int(len(data) * share)]), ANY)
    assert caught.value.reason is Reason.TRUNCATED_IMAGE


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("lossless", [False, True])
def test_a_deep_jpeg_that_was_cut_and_given_an_end_is_truncated(lossless: bool, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 4095, (90, 120)).astype(np.uint16)
    data = bytes(imagecodecs.jpeg8_encode(noise, bitspersample=12, lossless=lossless))
    assert read(data, ANY).pixels.shape == (90, 120, 3)
    begin = data.rfind(b"\xff\xda") + 10
    with pytest.raises(ImageError) as caught:
        read(data[: begin + int((len(data) - begin) * share)] + b"\xff\xd9", ANY)
    assert caught.value.reason is Reason.TRUNCATED_IMAGE


def test_what_pillow_calls_not_enough_is_truncated_in_a_format_without_a_rule_of_its_own() -> None:
    data = bytes(imagecodecs.qoi_encode(scene()))
    assert np.array_equal(pillow.read(data, "QOI", ANY).pixels, scene())
    with pytest.raises(ImageError) as caught:
        pillow.read(data[: len(data) // 2], "QOI", ANY)
    assert caught.value.reason is Reason.TRUNCATED_IMAGE
