"""Formats, checks and hashes of `figures.image`; the lines on images of the field reports are here."""

import hashlib
import io
import pickle
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, PngImagePlugin

from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.images.image import Prepared, Recipe, decode, prepare, prepare_crop, read
from biomedclip_ray.images.phash import perceptual_hash
from biomedclip_ray.schema import Reason


def prepared(data: bytes, **changes: float) -> Prepared:
    usual = Recipe(short_side=384, quality=95, min_side=32, max_pixels=178_956_970, max_aspect=12.0)
    return prepare(data, replace(usual, **changes))  # type: ignore[arg-type]


def refused(data: bytes, **changes: float) -> ImageError:
    with pytest.raises(ImageError) as caught:
        prepared(data, **changes)
    return caught.value


def scene(width: int = 300, height: int = 200) -> Image.Image:
    """Smooth colours, red in the upper left corner, so that turning and inverting show."""
    x, y = np.linspace(0, 1, width)[None, :], np.linspace(0, 1, height)[:, None]
    planes = (40 + 120 * (x + 0 * y), 60 + 100 * (y + 0 * x), 200 - 120 * x * y)
    picture = np.stack(planes, axis=2)
    picture[: height // 4, : width // 4] = (230, 20, 20)
    return Image.fromarray(picture.round().astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def difference(picture: Prepared, expected: Image.Image) -> float:
    return float(np.abs(decode(picture.jpeg).astype(int) - np.asarray(expected.convert("RGB"), int)).mean())


def test_a_jpeg_becomes_a_smaller_rgb_jpeg_with_its_originals_facts() -> None:
    data = saved(scene(1200, 800), "JPEG", quality=95)
    picture = prepared(data)
    assert (picture.width, picture.height) == (576, 384)
    assert (picture.original_width, picture.original_height, picture.original_format) == (1200, 800, "JPEG")
    assert picture.sha256 == hashlib.sha256(data).hexdigest()
    assert difference(picture, scene(1200, 800).resize((576, 384), Image.Resampling.BICUBIC)) < 2
    stored = Image.open(io.BytesIO(picture.jpeg))
    assert (stored.format, stored.mode, stored.size, stored.info.get("progressive")) == (
        "JPEG",
        "RGB",
        (576, 384),
        None,
    )


def test_a_small_picture_is_never_enlarged() -> None:
    picture = prepared(saved(scene(90, 64), "PNG"))
    assert (picture.width, picture.height) == (90, 64)


@pytest.mark.parametrize("width, height", [(5000, 4000), (1537, 1537), (1600, 1229)])
def test_a_picture_that_the_decoder_halves_is_still_pillows(width: int, height: int) -> None:
    data = saved(scene(width, height), "JPEG", quality=95)
    picture = prepared(data)
    baseline = Image.open(io.BytesIO(data)).resize((picture.width, picture.height), Image.Resampling.BICUBIC)
    assert difference(picture, baseline) < 1.5


@pytest.mark.parametrize(
    "kind, options, expected",
    [
        ("PNG", {}, "PNG"),
        ("GIF", {}, "GIF"),
        ("WEBP", {"lossless": True}, "WEBP"),
        ("TIFF", {}, "TIFF"),
        ("TIFF", {"compression": "tiff_lzw"}, "TIFF"),
        ("TIFF", {"compression": "tiff_adobe_deflate"}, "TIFF"),
        ("JPEG", {"quality": 95, "progressive": True}, "JPEG"),
        ("JPEG", {"quality": 95, "subsampling": 0}, "JPEG"),
    ],
)
def test_each_format_is_known_by_its_bytes(kind: str, options: dict[str, object], expected: str) -> None:
    picture = prepared(saved(scene(), kind, **options))
    assert picture.original_format == expected
    assert difference(picture, scene()) < (6 if kind == "GIF" else 2.5)


def test_other_formats_are_refused_whatever_their_name() -> None:
    for data in (saved(scene(), "ICO"), b"%PDF-1.4 not a picture", b"<svg/>", b"", b"\xff\xd8"):
        assert refused(data).reason is Reason.UNKNOWN_FORMAT


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_grey_pictures_become_rgb(kind: str) -> None:
    grey = scene().convert("L")
    assert difference(prepared(saved(grey, kind)), grey) < 2


@pytest.mark.parametrize("adobe", [True, False])
@pytest.mark.parametrize("size", [(300, 200), (1900, 1300)])
def test_a_cmyk_jpeg_gives_what_pillow_gives_with_and_without_the_adobe_marker(
    adobe: bool, size: tuple[int, int]
) -> None:
    data = saved(scene(*size).convert("CMYK"), "JPEG", quality=95)
    if not adobe:
        at = data.index(b"\xff\xee")
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
        assert b"Adobe" not in data
    picture = prepared(data)
    expected = (
        Image.open(io.BytesIO(data)).convert("RGB").resize((picture.width, picture.height), Image.Resampling.BICUBIC)
    )
    assert difference(picture, expected) < 2


def test_a_cmyk_tiff_gives_what_pillow_gives() -> None:
    cmyk = scene().convert("CMYK")
    assert difference(prepared(saved(cmyk, "TIFF")), cmyk.convert("RGB")) < 2


def _twelve_bits() -> np.ndarray:
    return np.tile(np.linspace(100, 4000, 300).astype(np.uint16), (200, 1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_by_its_range(kind: str) -> None:
    pixels = decode(prepared(saved(Image.fromarray(_twelve_bits()), kind)).jpeg)
    assert pixels[:, :3].max() < 8
    assert pixels[:, -3:].min() > 247


def test_sixteen_bit_grey_with_white_at_zero_is_no_negative() -> None:
    image = Image.fromarray(_twelve_bits())
    pixels = decode(prepared(saved(image, "TIFF", tiffinfo={262: 0})).jpeg)
    assert pixels[:, :3].min() > 247
    assert pixels[:, -3:].max() < 8


def test_the_grey_that_a_sixteen_bit_png_names_as_transparent_is_paper() -> None:
    values = _twelve_bits()
    values[:100] = 65535  # far outside the range of what is seen, which it must not darken
    pixels = decode(prepared(saved(Image.fromarray(values), "PNG", transparency=65535)).jpeg)
    assert pixels[:90].min() > 247
    assert pixels[110:, :3].max() < 8
    assert pixels[110:, -3:].min() > 247


def test_the_colour_that_a_sixteen_bit_png_names_as_transparent_is_paper() -> None:
    import cv2

    deep = np.zeros((100, 100, 3), np.uint16)
    deep[:50, :, 2] = 4000
    png = cv2.imencode(".png", deep)[1].tobytes()
    named = b"tRNS" + bytes(6)
    chunk = struct.pack(">I", 6) + named + struct.pack(">I", zlib.crc32(named))
    first = png.index(b"IDAT") - 4
    pixels = decode(prepared(png[:first] + chunk + png[first:]).jpeg)
    assert np.abs(pixels[20, 50].astype(int) - (255, 0, 0)).max() < 12
    assert pixels[90, 50].min() > 247


def test_sixteen_bit_colour_is_scaled_by_its_range() -> None:
    import cv2

    blue_to_red = np.stack([_twelve_bits()[:, ::-1], np.full((200, 300), 100, np.uint16), _twelve_bits()], axis=2)
    for suffix in (".png", ".tif"):
        data = cv2.imencode(suffix, blue_to_red)[1].tobytes()
        pixels = decode(prepared(data).jpeg).astype(int)
        assert np.abs(pixels[100, 5] - (0, 0, 255)).max() < 20
        assert np.abs(pixels[100, -5] - (255, 0, 0)).max() < 20


def test_sixteen_bit_colour_with_alpha_lies_on_white() -> None:
    import cv2

    deep = np.zeros((100, 100, 4), np.uint16)
    deep[:50, :, 2], deep[:50, :, 3] = 4000, 65535
    pixels = decode(prepared(cv2.imencode(".png", deep)[1].tobytes()).jpeg)
    assert np.abs(pixels[20, 50].astype(int) - (255, 0, 0)).max() < 12
    assert pixels[90, 50].min() > 247


def test_a_float_tiff_with_gaps_is_scaled_by_its_finite_range() -> None:
    values = np.tile(np.linspace(-3, 7, 100, dtype=np.float32), (60, 1))
    values[0, 0], values[1, 1] = np.nan, np.inf
    pixels = decode(prepared(saved(Image.fromarray(values), "TIFF")).jpeg)
    assert pixels[30, 2].max() < 20
    assert pixels[30, -2].min() > 235


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_on_white(kind: str) -> None:
    clear = scene().convert("RGBA")
    clear.putalpha(Image.fromarray(np.tile(np.array([255, 0], np.uint8).repeat(150), (200, 1))))
    pixels = decode(prepared(saved(clear, kind)).jpeg)
    assert pixels[:, 160:].min() > 245
    assert np.abs(pixels[10, 10].astype(int) - (230, 20, 20)).max() < 15


def test_a_palette_with_a_transparent_colour_is_composited_on_white() -> None:
    palette = scene().quantize(32)
    corner = palette.getpixel((2, 2))
    for kind in ("PNG", "GIF"):
        pixels = decode(prepared(saved(palette, kind, transparency=corner)).jpeg)
        assert pixels[10, 10].min() > 245
        assert pixels[150, 150].min() < 200


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(kind: str, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    data = saved(scene(1600, 1400), kind, exif=exif, **options)
    picture = prepared(data)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (picture.original_width, picture.original_height) == upright.size
    assert difference(picture, upright.resize((picture.width, picture.height), Image.Resampling.BICUBIC)) < 3


def _segment(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


_EXIF_6 = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
_XMP_8 = b"http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation='1' tiff:Orientation=\"8\"/>"


@pytest.mark.parametrize(
    ("segments", "sides"),
    [
        ([_EXIF_6], (200, 300)),
        ([_EXIF_6, b"Exif\0\0 and the rest of it"], (200, 300)),
        ([_XMP_8], (200, 300)),
        ([_XMP_8, b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"], (200, 300)),
        ([_EXIF_6.replace(b"\0\x06", b"\0\x01"), _XMP_8], (300, 200)),
        ([_XMP_8.replace(b"8", b"1")], (300, 200)),
    ],
)
def test_orientation_is_read_where_pillow_reads_it(segments: list[bytes], sides: tuple[int, int]) -> None:
    from PIL import ImageOps

    data = saved(scene(), "JPEG", quality=95)
    data = data[:2] + b"".join(map(_segment, segments)) + data[2:]
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    picture = prepared(data)
    assert (picture.width, picture.height) == upright.size == sides
    assert difference(picture, upright) < 2.5


def test_an_unreadable_exif_block_does_not_cost_the_picture() -> None:
    data = saved(scene(), "JPEG", quality=95)
    block = b"Exif\0\0" + b"MM\0*\xff\xff\xff\xf0garbage"
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
    assert difference(prepared(data), scene()) < 2.5


def test_of_several_pages_or_frames_the_first_counts() -> None:
    others = [Image.new("RGB", (300, 200), "green"), Image.new("RGB", (50, 50), "blue")]
    for kind in ("TIFF", "GIF"):
        picture = prepared(saved(scene(), kind, save_all=True, append_images=others[: 1 if kind == "GIF" else 2]))
        assert difference(picture, scene()) < 6


def test_a_png_with_a_huge_profile_and_text_is_kept() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 3_000_000, zip=True)
    text.add_itxt("More", "y" * 3_000_000, zip=True)
    profile = zlib.compress(bytes(5_000_000))
    data = saved(scene(), "PNG", pnginfo=text, icc_profile=profile)
    huge = b"iCCPprofile\0\0" + zlib.compress(bytes(80_000_000))
    chunk = struct.pack(">I", len(huge) - 4) + huge + struct.pack(">I", zlib.crc32(huge))
    data = data[:33] + chunk + data[33:]
    with pytest.raises(ValueError, match="too large"):
        Image.open(io.BytesIO(data)).load()
    assert difference(prepared(data), scene()) < 2.5


def _claiming(width: int, height: int) -> bytes:
    """A small PNG whose header claims any size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, body, b"IEND")
    )


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    assert refused(_claiming(60_000, 60_000)).reason is Reason.TOO_MANY_PIXELS
    data = bytearray(saved(scene(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65_000, 65_000)
    assert refused(bytes(data)).reason is Reason.TOO_MANY_PIXELS
    assert refused(saved(scene(), "JPEG"), max_pixels=59_999).detail == "300 x 200 pixels"


def test_size_and_shape_are_judged_before_decoding() -> None:
    assert refused(_claiming(31, 400)).reason is Reason.TOO_SMALL
    assert refused(_claiming(4000, 300)).reason is Reason.BAD_ASPECT
    assert refused(saved(Image.new("RGB", (3, 3)), "JPEG")).reason is Reason.TOO_SMALL


def test_a_picture_of_one_colour_is_blank() -> None:
    for image in (Image.new("RGB", (300, 200), "white"), Image.new("RGBA", (300, 200)), Image.new("I;16", (90, 90), 7)):
        assert refused(saved(image, "PNG")).reason is Reason.BLANK
    dot = Image.new("RGB", (300, 200), "white")
    dot.paste("black", (150, 100, 154, 104))
    assert prepared(saved(dot, "PNG")).width == 300


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_file_is_dropped_as_truncated(kind: str, share: float) -> None:
    data = saved(scene(), kind)
    assert refused(data[: int(len(data) * share)]).reason is Reason.TRUNCATED_IMAGE


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_jpeg_with_an_end_marker_put_on_is_truncated(mode: str, progressive: bool) -> None:
    data = saved(scene().convert(mode), "JPEG", progressive=progressive)
    assert refused(data[: len(data) // 2] + b"\xff\xd9").reason is Reason.TRUNCATED_IMAGE


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("where", ["in a segment", "at a marker", "behind a marker"])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_cut_jpeg_with_restart_markers_is_truncated(mode: str, progressive: bool, where: str, end: bytes) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)).resize((400, 300))
    data = saved(noise.convert(mode), "JPEG", progressive=progressive, restart_marker_blocks=7)
    markers = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", data)]
    at = markers[len(markers) // 2] + {"in a segment": 12, "at a marker": 0, "behind a marker": 2}[where]
    assert refused(data[:at] + end).reason is Reason.TRUNCATED_IMAGE
    assert prepared(data).width == 400


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_jpeg_that_was_filled_up_before_its_end_is_truncated(mode: str, progressive: bool) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)).resize((400, 300))
    data = saved(noise.convert(mode), "JPEG", progressive=progressive, restart_marker_blocks=7)
    for share in (0.3, 0.7):
        cut = data[: int(len(data) * share)] + bytes(5000) + b"\xff\xd9"
        assert refused(cut).reason is Reason.TRUNCATED_IMAGE
    assert prepared(data[:-2] + b"\0\0\0" + data[-2:]).width == 400


def _named_as_transparent(values: np.ndarray, colour: tuple[int, ...]) -> bytes:
    """A PNG of 16 bits with a tRNS chunk."""
    import imagecodecs

    png = bytes(imagecodecs.png_encode(values))
    named = b"tRNS" + struct.pack(f">{len(colour)}H", *colour)
    chunk = struct.pack(">I", len(named) - 4) + named + struct.pack(">I", zlib.crc32(named))
    first = png.index(b"IDAT") - 4
    return png[:first] + chunk + png[first:]


@pytest.mark.parametrize("paper", [(65535, 65535, 65535), (0, 0, 0), (258, 3, 60000)])
def test_any_colour_that_a_deep_png_names_as_transparent_is_paper(paper: tuple[int, ...]) -> None:
    values = np.empty((100, 100, 3), np.uint16)
    values[:] = paper
    values[:50, :, 0], values[:50, :, 1:] = np.linspace(1000, 3000, 100), 1000
    pixels = decode(prepared(_named_as_transparent(values, paper)).jpeg)
    assert pixels[60:].min() > 247
    assert np.abs(pixels[20, 97].astype(int) - (250, 0, 0)).max() < 16 and pixels[20, 2].max() < 16


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
def test_harmless_extra_bytes_are_harmless(kind: str) -> None:
    data = saved(scene(), kind)
    assert prepared(data + bytes(1000) + b"trailer").jpeg == prepared(data).jpeg


def test_extra_bytes_between_a_jpegs_markers_are_harmless() -> None:
    data = saved(scene(), "JPEG", quality=95)
    assert difference(prepared(data[:-2] + b"\0\x12\x13" + data[-2:]), scene()) < 2.5


def test_a_damaged_scan_is_broken_not_a_garbled_picture() -> None:
    data = bytearray(saved(scene(), "JPEG", quality=95))
    start = data.index(b"\xff\xda") + 200
    for at in range(start, start + 400, 7):
        data[at] = 0x55 ^ data[at] if data[at] != 0xFF and data[at] ^ 0x55 != 0xFF else data[at]
    assert refused(bytes(data)).reason in (Reason.BROKEN_IMAGE, Reason.TRUNCATED_IMAGE)


def test_near_equal_pictures_have_near_hashes_and_others_have_not() -> None:
    first = prepared(saved(scene(1200, 900), "JPEG", quality=95))
    again = prepared(saved(scene(1200, 900).resize((700, 525)), "PNG"))
    other = prepared(saved(scene(1200, 900).rotate(180), "JPEG"))
    assert (first.phash ^ again.phash).bit_count() <= 6
    assert (first.phash ^ other.phash).bit_count() >= 16
    assert 0 <= first.phash < 2**64
    assert (first.phash ^ perceptual_hash(decode(first.jpeg))).bit_count() <= 2


def test_a_crop_is_stored_as_a_picture_of_its_own() -> None:
    data = saved(scene(1200, 800), "JPEG", quality=95)
    recipe = Recipe(384, 95, 32, 10_000_000, 12.0)
    whole = read(data, recipe.limits)
    assert (whole.pixels.shape, whole.width, whole.height) == ((800, 1200, 3), 1200, 800)
    left, right = (prepare_crop(whole, box, recipe) for box in ((0, 0, 0.25, 1), (0.5, 0.5, 1, 1)))
    assert (left.width, left.height, left.original_width, left.original_height) == (300, 800, 300, 800)
    assert (right.width, right.height, right.original_width) == (576, 384, 600)
    assert difference(right, scene(1200, 800).crop((600, 400, 1200, 800)).resize((576, 384))) < 2
    assert len({left.sha256, right.sha256, prepared(data).sha256}) == 3
    with pytest.raises(ImageError) as caught:
        prepare_crop(whole, (0, 0, 0.02, 1), recipe)
    assert caught.value.reason is Reason.TOO_SMALL


def test_the_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageError(Reason.BLANK, "why")))
    assert (error.reason, error.detail, str(error)) == (Reason.BLANK, "why", "the image is one colour: why")


def test_a_stored_picture_that_is_no_jpeg_is_an_image_error() -> None:
    with pytest.raises(ImageError):
        decode(simplejpeg.encode_jpeg(np.zeros((64, 64, 3), np.uint8))[:200])


def test_every_picture_of_the_corpus_is_kept_or_has_a_reason(corpus: Path) -> None:
    kept, reasons = 0, set()
    for path in sorted(corpus.glob("bucket/PMC99*/*")):
        if path.suffix in (".xml", ".json", ".txt"):
            continue
        try:
            picture = prepared(path.read_bytes(), short_side=64)
        except ImageError as error:
            reasons.add(error.reason)
        else:
            kept += 1
            assert min(picture.width, picture.height) <= 64
    assert kept > 100
    assert reasons == {Reason.TOO_SMALL}
