"""What comes in from strangers: each refusal names the item, the limit and the way out."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from biomedclip_ray.config import Serve
from biomedclip_ray.serve.inputs import Refusal, read_item, read_items

LIMITS = Serve(max_items=4, max_pixels=10_000)


def encoded(format: str, size: tuple[int, int] = (20, 10), **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)).save(
        stream, format, **options
    )
    return stream.getvalue()


def uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def refusal(value: object) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_items(value, "input", LIMITS)
    return caught.value


def test_a_list_may_mix_texts_and_pictures_and_keeps_its_order():
    png, jpeg = encoded("PNG"), encoded("JPEG")
    assert read_items(["a", uri(png), "b", uri(jpeg, "jpeg")], "input", LIMITS) == ["a", png, "b", jpeg]


def test_a_string_alone_is_one_item():
    assert read_items("a chest radiograph", "input", LIMITS) == ["a chest radiograph"]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_the_format_is_what_the_bytes_say_whatever_the_uri_calls_it(format):
    data = encoded(format)
    assert read_item(uri(data, "x-made-up"), "input", LIMITS) == data


def test_an_address_is_a_text_and_is_never_fetched():
    assert (
        read_item("http://169.254.169.254/latest/meta-data", "input", LIMITS)
        == "http://169.254.169.254/latest/meta-data"
    )


def test_too_many_items_name_the_limit_and_the_key():
    error = refusal(["a"] * 5)
    assert (error.status, error.param, error.code) == (400, "input", "too_many_items")
    assert "5 items" in error.message and "at most 4" in error.message and "serve.max_items" in error.message


@pytest.mark.parametrize("value", [[1, 2, 3], [[1, 2], [3]], 7])
def test_token_numbers_are_refused_with_the_way_out(value):
    error = refusal(value)
    assert error.code == "token_input" and "send strings" in error.message


@pytest.mark.parametrize(
    ("value", "param", "code"),
    [
        ([], "input", "empty_input"),
        (None, "input", "missing_field"),
        ("", "input", "empty_input"),
        (["good", " \n"], "input[1]", "empty_input"),
        (["good", {"text": "a"}], "input[1]", "wrong_type"),
        ({"text": "a"}, "input", "wrong_type"),
        (["good", "data:image/png,plain"], "input[1]", "bad_data_uri"),
        ("data:image/png;base64", "input", "bad_data_uri"),
        ("data:image/png;base64,!!!", "input", "bad_base64"),
        ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "input", "unknown_format"),
        (uri(b""), "input", "unknown_format"),
    ],
)
def test_a_bad_item_is_named(value, param, code):
    error = refusal(value)
    assert (error.status, error.param, error.code) == (400, param, code)
    assert error.body()["error"] == {
        "message": error.message,
        "type": "invalid_request_error",
        "param": param,
        "code": code,
    }


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_too_many_pixels_are_refused_by_the_header(format):
    error = refusal(uri(encoded(format, (200, 60))))
    assert error.code == "too_many_pixels" and "200 x 60" in error.message and "10,000" in error.message


def test_a_bomb_is_refused_before_it_is_decoded():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert refusal(uri(bomb)).code == "too_many_pixels"
    huge_tiff = encoded("TIFF").replace(struct.pack("<H", 20), struct.pack("<H", 65_000))
    assert refusal(uri(huge_tiff)).code in ("too_many_pixels", "broken_image")


def test_a_small_png_with_a_big_text_chunk_passes_because_limits_are_on_pixels():
    note = PngInfo()
    note.add_text("comment", "x" * 5_000_000, zip=True)
    data = encoded("PNG", pnginfo=note)
    assert read_item(uri(data), "input", LIMITS) == data


@given(st.text(max_size=80) | st.binary(max_size=200).map(uri))
def test_any_string_is_taken_or_refused_and_nothing_else(value):
    try:
        item = read_item(value, "input", LIMITS)
    except Refusal as error:
        assert error.status == 400 and error.param == "input" and error.code
    else:
        assert item == value or isinstance(item, bytes)


@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]), st.integers(0, 250), st.integers(0, 255))
def test_a_picture_with_a_wrong_byte_is_taken_or_refused_and_nothing_else(format, place, byte):
    data = bytearray(encoded(format))
    data[place % len(data)] = byte
    try:
        assert read_item(uri(bytes(data)), "input", LIMITS) == data
    except Refusal as error:
        assert error.code in ("unknown_format", "broken_image", "too_many_pixels")
