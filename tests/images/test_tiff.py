"""TIFFs of every layout: the pixels are tifffile's, with white-is-zero, alpha, palette, page and orientation applied
once.
"""

import io
import itertools
from typing import Any

import numpy as np
import pytest
import tifffile

from biomedclip_ray.images.errors import ImageError, Limits
from biomedclip_ray.images.image import Read, read, size
from biomedclip_ray.schema import Reason

ANY = Limits(1, 10**9, 1e9)


def written(values: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    options.setdefault("metadata", None)
    tifffile.imwrite(out, values, **options)
    return out.getvalue()


def pages(*several: tuple[np.ndarray, dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for values, options in several:
            writer.write(values, metadata=None, **options)
    return out.getvalue()


def shown(data: bytes) -> Read:
    found = read(data, ANY)
    assert size(data) in ((found.width, found.height), (found.height, found.width))
    return found


def colour(dtype: Any = np.uint16, samples: int = 3, width: int = 70, height: int = 50) -> np.ndarray:
    """Smooth, other in each channel and corner, over a sixteenth of the type's range; alpha falls from
    left to right.
    """
    top = np.iinfo(dtype).max
    x, y = np.linspace(0, 1, width)[None, :], np.linspace(0, 1, height)[:, None]
    planes = [x + 0 * y, y + 0 * x, (1 - x) * y][: min(samples, 3)]
    scale = top if top == 255 else top // 16
    values = [np.rint(plane * scale) for plane in planes]
    if samples == 4:
        values.append(np.rint((1 - 0.9 * x + 0 * y) * top))
    return np.stack(values, axis=2).astype(dtype)


def by_range(values: np.ndarray) -> np.ndarray:
    numbers = values.astype(np.float64)
    return np.rint((numbers - numbers.min()) * (255 / (numbers.max() - numbers.min()))).astype(int)


def on_white(mapped: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.astype(np.float64)[:, :, None] / np.iinfo(alpha.dtype).max
    return np.rint(255 + (mapped - 255) * share).astype(int)


LAYOUTS = list(
    itertools.product(
        [3, 4], ["separate", "contig"], ["<", ">"], [None, "lzw", "zlib"], [{"rowsperstrip": 7}, {"tile": (16, 32)}]
    )
)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("samples", "planar", "order", "compression", "cut"), LAYOUTS)
def test_colour_of_every_layout_is_what_was_written(
    dtype: Any, samples: int, planar: str, order: str, compression: str | None, cut: dict[str, Any]
) -> None:
    values = colour(dtype, samples)
    stored = np.moveaxis(values, 2, 0) if planar == "separate" else values
    extra = {"extrasamples": ["unassalpha"]} if samples == 4 else {}
    data = written(
        stored, photometric="rgb", planarconfig=planar, byteorder=order, compression=compression, **cut, **extra
    )
    expected = values[:, :, :3].astype(int) if dtype == np.uint8 else by_range(values[:, :, :3])
    if samples == 4:
        expected = on_white(expected, values[:, :, 3])
    assert np.abs(shown(data).pixels - expected).max() <= 1


@pytest.mark.parametrize("compression", ["zstd", "lzma", "packbits", "webp", "jpeg2000", "jpegxl", "lerc", "png"])
def test_every_compression_is_read(compression: str) -> None:
    for dtype in [np.uint8] if compression == "webp" else [np.uint8, np.uint16]:
        values = colour(dtype)
        options = {"compressionargs": {"level": 0}} if compression == "jpeg2000" else {}
        if compression in ("webp", "jpegxl"):
            options = {"compressionargs": {"lossless": True}}
        data = written(values, photometric="rgb", compression=compression, **options)
        expected = values.astype(int) if dtype == np.uint8 else by_range(values)
        assert np.abs(shown(data).pixels - expected).max() <= 1, dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(dtype: Any, orientation: int) -> None:
    values = colour(dtype)
    turned = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.transpose(1, 0, 2),
        6: values[::-1].transpose(1, 0, 2),
        7: values[::-1, ::-1].transpose(1, 0, 2),
        8: values.transpose(1, 0, 2)[::-1],
    }[orientation]
    data = written(values, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    expected = turned.astype(int) if dtype == np.uint8 else by_range(turned)
    assert np.abs(shown(data).pixels - expected).max() <= 1
    grey = written(values[:, :, 0], photometric="minisblack", extratags=[(274, "H", 1, orientation, True)])
    expected = turned[:, :, 0].astype(int) if dtype == np.uint8 else by_range(turned[:, :, 0])
    assert np.abs(shown(grey).pixels[:, :, 0] - expected).max() <= 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_white_is_zero_is_inverted_once(order: str, dtype: Any, compression: str | None) -> None:
    ramp = np.tile(np.linspace(0, 1, 64), (40, 1))
    values = ramp > 0.5 if dtype == np.bool_ else (ramp * (255 if dtype == np.uint8 else 4000)).astype(dtype)
    data = written(values, photometric="miniswhite", byteorder=order, compression=compression)
    pixels = shown(data).pixels[:, :, 0].astype(int)
    expected = 255 - (values.astype(int) if dtype == np.uint8 else by_range(values))
    assert np.abs(pixels - expected).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_premultiplied_alpha_lies_on_white(dtype: Any) -> None:
    values = colour(dtype, 4)
    share = values[:, :, 3:] / np.iinfo(dtype).max
    multiplied = values.copy()
    multiplied[:, :, :3] = np.rint(values[:, :, :3] * share)
    data = written(multiplied, photometric="rgb", extrasamples=["assocalpha"])
    mapped = values[:, :, :3].astype(int) if dtype == np.uint8 else by_range(values[:, :, :3])
    assert np.abs(shown(data).pixels - on_white(mapped, values[:, :, 3])).max() <= 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_fourth_channel_that_nothing_calls_alpha_is_none(dtype: Any) -> None:
    values = colour(dtype, 4)
    data = written(values, photometric="rgb", extrasamples=["unspecified"])
    expected = values[:, :, :3].astype(int) if dtype == np.uint8 else by_range(values[:, :, :3])
    assert np.abs(shown(data).pixels - expected).max() <= 1


def test_grey_with_alpha_of_sixteen_bits_lies_on_white() -> None:
    grey = np.tile(np.linspace(0, 4000, 64).astype(np.uint16), (40, 1))
    alpha = np.full((40, 64), 65535, np.uint16)
    alpha[20:] = 0
    data = written(
        np.dstack([grey, alpha]), photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
    )
    pixels = shown(data).pixels.astype(int)
    assert pixels[20:].min() == 255
    assert np.abs(pixels[:20, :, 0] - by_range(grey)[:20]).max() <= 1


@pytest.mark.parametrize("top", [255, 1023, 4095, 16383])
def test_alpha_of_fewer_bits_in_sixteen_is_opaque_at_its_own_top(top: int) -> None:
    values = (colour(np.uint16, 4).astype(np.float64) * (top / 65535)).astype(np.uint16)
    values[:, :, 3] = top
    pixels = shown(written(values, photometric="rgb", extrasamples=["unassalpha"])).pixels
    assert np.abs(pixels - by_range(values[:, :, :3])).max() <= 1


def test_grey_lines_on_transparent_black_of_sixteen_bits_are_seen() -> None:
    values = np.zeros((60, 60, 4), np.uint16)
    values[30, :, :3], values[30, :, 3] = 2000, 65535
    values[40, :, :3], values[40, :, 3] = 1000, 65535
    pixels = shown(written(values, photometric="rgb", extrasamples=["unassalpha"])).pixels
    assert (pixels[0, 0] == 255).all() and pixels[40].max() == 0


def test_a_hot_pixel_and_a_dead_one_do_not_take_the_range() -> None:
    values = np.tile(np.linspace(0, 4095, 300).astype(np.uint16), (200, 1))
    values[50, 50] = 65535
    found = shown(written(values, photometric="minisblack"))
    assert len(np.unique(found.pixels)) > 240
    assert found.note.endswith("shown as black to white, outliers cut")
    signed = values.astype(np.int32) - 2000
    signed[10, 10] = -(2**30)
    assert len(np.unique(shown(written(signed, photometric="minisblack")).pixels)) > 240
    # a flat image with few marks keeps them
    marks = np.full((200, 300), 1000, np.uint16)
    marks[5, 5:25] = 4000
    assert shown(written(marks, photometric="minisblack")).pixels[5, 10].min() == 255


@pytest.mark.parametrize("gap", [-9999.0, np.nan, -3.4028235e38, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gaps_of_float_images_are_left_out_of_the_range(gap: float, dtype: Any) -> None:
    values = np.tile(np.linspace(0.2, 0.8, 100), (60, 1)).astype(dtype)
    values[:10] = gap
    pixels = shown(written(values, photometric="minisblack")).pixels[:, :, 0].astype(int)
    assert np.abs(pixels[20] - by_range(values[20])).max() <= 1


@pytest.mark.parametrize("gap", [0, 255, 65535])
def test_the_value_that_gdal_calls_none_is_left_out_of_the_range(gap: int) -> None:
    values = np.tile(np.linspace(1000, 3000, 100).astype(np.uint16), (60, 1))
    values[:10] = gap
    data = written(values, photometric="minisblack", extratags=[(42113, "s", 0, str(gap), True)])
    assert np.abs(shown(data).pixels[20, :, 0].astype(int) - by_range(values[20])).max() <= 1


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32, np.int64, np.float16, np.float64])
def test_number_types_of_all_kinds_do_not_wrap(dtype: Any) -> None:
    low, high = (0, 100) if np.dtype(dtype).kind == "u" else (-90, 100)
    values = np.tile(np.linspace(low, high, 100).astype(dtype), (60, 1))
    assert np.abs(shown(written(values, photometric="minisblack")).pixels[:, :, 0] - by_range(values)).max() <= 1


def test_complex_numbers_are_not_supported_and_say_the_way_out() -> None:
    with pytest.raises(ImageError) as caught:
        shown(written(np.ones((40, 40), np.complex64), photometric="minisblack"))
    assert caught.value.reason is Reason.NOT_SUPPORTED
    assert "save it as RGB" in caught.value.detail


@pytest.mark.parametrize("top", [255, 65280, 65535])
def test_a_palette_of_eight_or_sixteen_bits_gives_its_colours(top: int) -> None:
    ramp = np.linspace(0, top, 256)
    table = np.stack([ramp, ramp[::-1], np.full(256, top / 2)]).astype(np.uint16)
    index = np.tile(np.arange(256, dtype=np.uint8), (40, 1))
    pixels = shown(written(index, photometric="palette", colormap=table)).pixels
    assert np.abs(pixels[0, :, 0].astype(int) - np.arange(256)).max() <= 1
    assert np.abs(pixels[0, :, 1].astype(int) - np.arange(255, -1, -1)).max() <= 1


def test_twelve_bits_packed_are_read() -> None:
    values = np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (40, 1))
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    data = bytearray(written(packed.astype(np.uint8).reshape(40, 96), photometric="minisblack"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages[0].tags
        places = {code: tags[code].valueoffset for code in (256, 258)}
    data[places[256] : places[256] + 2] = (64).to_bytes(2, "little")
    data[places[258] : places[258] + 2] = (12).to_bytes(2, "little")
    assert np.abs(shown(bytes(data)).pixels[:, :, 0] - by_range(values)).max() <= 1


# -- pages and channels -----------------------------------------------------------------------------------------------


def blob(at: int, dtype: Any = np.uint16, top: int = 3000) -> np.ndarray:
    values = np.zeros((60, 80), dtype)
    values[10:50, at : at + 15] = top
    return values


def test_channels_of_ome_become_one_composite_in_the_files_colours() -> None:
    out = io.BytesIO()
    stack = np.stack([blob(5), blob(30, top=500), blob(55)])
    colours = [0x0000FFFF, 0x00FF00FF, -16776961]  # blue, green, red with alpha
    tifffile.imwrite(
        out, stack, ome=True, photometric="minisblack", metadata={"axes": "CYX", "Channel": {"Color": colours}}
    )
    found = shown(out.getvalue())
    assert found.pixels[30, 10].tolist() == [0, 0, 255]
    assert found.pixels[30, 35].tolist() == [0, 255, 0]  # each channel by its own range
    assert found.pixels[30, 60].tolist() == [255, 0, 0]
    assert found.note == "3 channels: #0000ff, #00ff00, #ff0000"


def test_channels_without_colours_get_imagejs_and_the_note_says_so() -> None:
    out = io.BytesIO()
    tifffile.imwrite(out, np.stack([blob(5), blob(30)]), ome=True, photometric="minisblack", metadata={"axes": "CYX"})
    found = shown(out.getvalue())
    assert found.pixels[30, 10].tolist() == [255, 0, 0] and found.pixels[30, 35].tolist() == [0, 255, 0]
    assert found.note == "2 channels, colours chosen: red, green"


def test_an_imagej_composite_takes_its_tables() -> None:
    out = io.BytesIO()
    ramp = np.arange(256, dtype=np.uint8)
    none = np.zeros(256, np.uint8)
    tables = [np.stack([ramp, none, ramp]), np.stack([none, ramp, ramp])]
    tifffile.imwrite(
        out,
        np.stack([blob(5), blob(30)]),
        imagej=True,
        metadata={"axes": "CYX", "mode": "composite", "LUTs": tables},
    )
    found = shown(out.getvalue())
    assert found.pixels[30, 10].tolist() == [255, 0, 255] and found.pixels[30, 35].tolist() == [0, 255, 255]


@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_of_a_stack_in_depth_the_middle_is_kept_and_of_a_series_the_first(kind: str) -> None:
    stack = np.zeros((3, 5, 60, 80), np.uint16)
    for time, depth in itertools.product(range(3), range(5)):
        stack[time, depth, :, 10 * depth + 3 * time] = 1000
    out = io.BytesIO()
    tifffile.imwrite(out, stack, photometric="minisblack", metadata={"axes": "TZYX"}, **{kind: True})
    found = shown(out.getvalue())
    assert found.pixels[0].argmax(axis=0)[0] == 20
    assert found.note.startswith("time 1 of 3, slice 3 of 5")


def test_of_other_pages_the_first_is_kept_and_the_note_counts_them() -> None:
    data = pages((blob(5, np.uint8, 200), {}), (blob(30, np.uint8, 200), {}), (np.full((30, 40), 9, np.uint8), {}))
    found = shown(data)
    assert found.pixels[30, 10, 0] == 200 and found.note == "page 1 of 3"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1), (1, 2), (2, 1)])
def test_of_a_page_and_its_thumbnails_the_largest_full_page_is_kept(order: tuple[int, ...]) -> None:
    full, small = colour(np.uint8, width=140, height=100), colour(np.uint8)[::5, ::5]
    several = [
        (small, {"subfiletype": 1, "photometric": "rgb"}),
        (full, {"photometric": "rgb"}),
        (np.zeros((100, 140), bool), {"subfiletype": 4, "photometric": "mask"}),
    ]
    found = shown(pages(*(several[n] for n in order)))
    assert np.array_equal(found.pixels, full)


def test_a_pyramid_with_too_many_pixels_gives_its_largest_level_that_has_not() -> None:
    full = np.tile(colour(np.uint8), (8, 8, 1))
    data = pages(
        (full, {"photometric": "rgb"}),
        (full[::2, ::2], {"photometric": "rgb", "subfiletype": 1}),
        (full[::4, ::4], {"photometric": "rgb", "subfiletype": 1}),
    )
    found = read(data, Limits(1, 100_000, 12))
    assert (found.width, found.height) == (280, 200)
    assert found.note == "level of 280 x 200 for 560 x 400"
    with pytest.raises(ImageError) as caught:
        read(pages((full, {"photometric": "rgb"})), Limits(1, 100_000, 12))
    assert caught.value.reason is Reason.TOO_MANY_PIXELS


def test_a_file_of_a_set_is_an_image_of_its_own_and_not_zeros(tmp_path: Any) -> None:
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="80" SizeY="60" SizeC="2" SizeZ="1" '
        'SizeT="1">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/><Channel ID="Channel:0:1" SamplesPerPixel="1"/>'
        '<TiffData FirstC="0" IFD="0"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData FirstC="1" IFD="0"><UUID FileName="b.ome.tif">urn:uuid:2</UUID></TiffData></Pixels></Image></OME>'
    )
    found = shown(written(blob(30), description=xml, photometric="minisblack"))
    assert found.pixels[30, 35].tolist() == [255, 255, 255] and found.pixels[30, 10].tolist() == [0, 0, 0]
    assert "one file of a set" in found.note


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_cut_file_is_truncated(compression: str | None, share: float, dtype: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3)).astype(dtype)
    data = written(noise, photometric="rgb", compression=compression, rowsperstrip=10)
    with pytest.raises(ImageError) as caught:
        shown(data[: int(len(data) * share)])
    assert caught.value.reason is Reason.TRUNCATED_IMAGE


def test_a_shaped_stack_with_named_channels_is_a_composite_and_without_names_a_first_page() -> None:
    out = io.BytesIO()
    tifffile.imwrite(out, np.stack([blob(5), blob(30)]), photometric="minisblack", metadata={"axes": "CYX"})
    assert shown(out.getvalue()).note == "2 channels, colours chosen: red, green"
    out = io.BytesIO()
    tifffile.imwrite(out, np.stack([blob(5), blob(30)]), photometric="minisblack")
    assert shown(out.getvalue()).note.startswith("page 1 of 2")


def test_samples_that_no_tag_calls_colour_are_channels() -> None:
    data = written(np.dstack([blob(5), blob(30)]), photometric="minisblack", planarconfig="contig")
    found = shown(data)
    assert found.pixels[30, 10].tolist() == [255, 0, 0] and found.pixels[30, 35].tolist() == [0, 255, 0]


# Alpha deeper than 8 bits, and numbers deeper than a codec takes
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("top", [254, 4095])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.uint32])
def test_alpha_of_few_bits_in_many_is_read_by_its_values(dtype: Any, top: int, kind: str) -> None:
    values = (colour(np.uint16, 4).astype(np.float64) / 4095 * top).astype(dtype)
    values[:, :, 3] = top
    data = written(values, photometric="rgb", extrasamples=[kind], compression="zlib")
    found = shown(data).pixels.astype(int)
    assert np.abs(found - by_range(values[:, :, :3])).max() <= 2


def test_float_alpha_above_one_and_of_64_bits_hides_nothing() -> None:
    for dtype in (np.float32, np.uint64, np.int64):
        values = colour(np.uint8, 4).astype(dtype)
        values[:, :, 3] = 255
        for kind in ("unassalpha", "assocalpha"):
            found = shown(written(values, photometric="rgb", extrasamples=[kind])).pixels.astype(int)
            assert np.abs(found - by_range(values[:, :, :3])).max() <= 1


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32])
def test_jpeg_2000_of_16_bits_and_of_few_in_32_is_what_was_written(dtype: Any) -> None:
    values = colour(np.uint16, 3).astype(np.int32) - (0 if dtype == np.uint16 else 2000)
    data = written(values.astype(dtype), photometric="rgb", compression="jpeg2000")
    assert np.abs(shown(data).pixels.astype(int) - by_range(values)).max() <= 1


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_jpeg_2000_of_32_bits_that_lost_its_upper_ones_is_not_supported(dtype: Any) -> None:
    data = written(colour(np.uint32, 3).astype(dtype), photometric="rgb", compression="jpeg2000")
    with pytest.raises(ImageError, match="JPEG 2000 of 32 bits in TIFF: save it as RGB or grey of 8 or 16") as told:
        read(data, ANY)
    assert told.value.reason is Reason.NOT_SUPPORTED
