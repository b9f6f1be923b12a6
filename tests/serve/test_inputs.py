"""What comes in from strangers: each refusal names the item, the limit and the way out."""

import base64
import io
import json
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from biomedclip_ray.config import Serve
from biomedclip_ray.serve.errors import Refusal
from biomedclip_ray.serve.forms import form_of
from biomedclip_ray.serve.inputs import Fetch, read_item, read_items

LIMITS = Serve(max_items=4, max_pixels=10_000)


def encoded(format: str, size: tuple[int, int] = (20, 10), **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)).save(
        stream, format, **options
    )
    return stream.getvalue()


def uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def refusal(value: object, limits: Serve = LIMITS) -> Refusal:
    try:
        found = read_items(value, "input", limits)
    except Refusal as whole:
        return whole
    return next(entry for entry in found if isinstance(entry, Refusal))


def test_a_list_may_mix_texts_and_pictures_and_keeps_its_order():
    png, jpeg = encoded("PNG"), encoded("JPEG")
    assert read_items(["a", uri(png), "b", uri(jpeg, "jpeg")], "input", LIMITS) == ["a", png, "b", jpeg]


def test_a_string_alone_is_one_item():
    assert read_items("a chest radiograph", "input", LIMITS) == ["a chest radiograph"]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_the_format_is_what_the_bytes_say_whatever_the_uri_calls_it(format):
    data = encoded(format)
    assert read_item(uri(data, "x-made-up"), "input", LIMITS) == data


PNG, JPEG = encoded("PNG"), encoded("JPEG")
BASE64 = base64.b64encode(PNG).decode()
LINES = "\n".join(BASE64[n : n + 76] for n in range(0, len(BASE64), 76))


@pytest.mark.parametrize(
    ("sent", "image"),
    [
        (uri(PNG), PNG),
        (BASE64, PNG),
        (base64.b64encode(JPEG).decode(), JPEG),
        (base64.urlsafe_b64encode(JPEG).decode().rstrip("="), JPEG),
        (LINES, PNG),
        (f"data:;base64,{BASE64}", PNG),
        (f"data:application/octet-stream;base64,{BASE64}", PNG),
        (f"DATA:image/png;charset=utf-8;BASE64,{BASE64}", PNG),
        (f" \n{uri(PNG)}\n", PNG),
        (f"data:image/png;base64, {LINES}", PNG),
        (f'<img alt="a gel" src="{uri(PNG)}">', PNG),
        (f"![a gel]({uri(PNG)})", PNG),
        (f'<figure><img src="{uri(PNG)}"><figcaption>a gel</figcaption></figure>', PNG),
        (f"url({uri(PNG)})", PNG),
        (f'"{uri(PNG)}"', PNG),
        (str(base64.b64encode(PNG)), PNG),
        (f"base64,{BASE64}", PNG),
        (f"\ufeff{BASE64}\n", PNG),
        ({"image": BASE64}, PNG),
        ({"image": uri(PNG)}, PNG),
        ({"type": "image", "image": BASE64}, PNG),
        ({"type": "image_url", "image_url": {"url": uri(PNG), "detail": "low"}}, PNG),
        ({"type": "image_url", "image_url": uri(PNG)}, PNG),
        ({"type": "input_image", "image_url": uri(PNG)}, PNG),
        *((base64.b64encode(encoded(kind)).decode(), encoded(kind)) for kind in ("GIF", "TIFF", "WEBP", "BMP")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_way_to_send_an_image_is_that_image(sent, image):
    assert read_items(sent, "input", LIMITS) == [image]


@pytest.mark.parametrize(
    "sent",
    [
        "https://example.org/a.png",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "s3://bucket/figure.jpg",
        " gs://bucket/figure ",
        "figure-1.JPEG",
        "/data/images/fig.tiff",
        "C:\\images\\fig.bmp",
        '<img src="https://example.org/a.png">',
        "< IMG class=x>",
        "![a gel](figures/f1.png)",
        '<picture><source srcset="a.webp"><img src="a.png"></picture>',
        '<svg xmlns="http://www.w3.org/2000/svg"><circle r="4"/></svg>',
        '"https://example.org/a.png"',
        "blob:https://example.org/0b1c-22",
        "/home/me/figure 1.png",
        PNG.hex(),
        f"0x{JPEG.hex()}",
        json.dumps({"image": BASE64}),
        json.dumps([{"type": "image_url", "image_url": {"url": uri(PNG)}}]),
        "data:image/png,plain",
        "data:image/png;base64",
        "data:text/plain,hello",
        "data:,",
        str(PNG[:60]),
        PNG[:60].decode("latin-1"),
        JPEG[:60].decode("latin-1"),
        JPEG[:60].decode("utf-8", "replace"),
        "iVBORw0KGgo" + "A" * 60,
        BASE64[:-9] + "!" + BASE64[-8:],
        {"image": "not base64 !"},
        {"image": "a gel"},
        {"image": ""},
        {"image": 3},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "image_url", "image_url": {"address": "x"}},
        {"type": "text", "image": BASE64},
        {"type": "audio", "audio": "x"},
        {"text": "a", "image": BASE64},
        {},
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_means_an_image_and_is_none_is_refused_with_the_form_and_never_words(sent):
    error = refusal(sent)
    assert error.status == 400 and error.param.startswith("input")
    assert "base64" in error.message or error.code == "broken_image"


@pytest.mark.parametrize(
    "text",
    [
        "a chest radiograph, https://example.org/a.png",
        "data: mean and standard deviation",
        "Data:image quality in figure 2",
        "ACGT" * 40,
        "Pneumonoultramicroscopicsilicovolcanoconiosis",
        "PNG and JPEG",
        "GIF89a is a format",
        "BMP-7",
        "RIFF",
        "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVVHSLAKWKRQ",
        "p < 0.05 <img",
        "ratio 3://4",
        "E. coli.png plasmid",
        "/9j/ is how a JPEG begins",
        "!important",
        '"lipid A" and `x`',
        "b'",
        "url(",
        "base64, a code",
        "<i>E. coli</i> on agar <0.05",
        '{"n": 3, "p": 0.05}',
        "see figure 1.png",
    ],
)
def test_words_that_only_look_like_it_stay_words(text):
    assert read_items(text, "input", LIMITS) == [text]
    assert read_items({"type": "text", "text": text}, "input", LIMITS) == [text]


@pytest.mark.parametrize("unit", ["a.", "<a>", "[", "![", "/a.", " ", "<img ", "data:", "b'"])
def test_a_long_string_is_read_in_no_time_whatever_it_looks_like(unit):
    began = time.process_time()
    form_of(unit * (8_000_000 // len(unit)))
    assert time.process_time() - began < 0.5


def test_a_text_part_is_a_text_whatever_it_looks_like():
    assert read_items([{"text": "figure-1.png"}], "input", LIMITS) == ["figure-1.png"]


def test_half_a_character_is_refused_and_not_a_fault_of_the_server():
    assert refusal(["good", "\ud800"]).code == "bad_text" and refusal({"text": "a\udfff"}).code == "bad_text"


def test_an_address_is_fetched_only_from_https_and_where_the_operator_lets_it():
    open_to = LIMITS.model_copy(update={"fetch_hosts": ("example.org",)})
    address = "https://example.org/a.png"
    assert read_items(address, "input", open_to) == [Fetch(address, "input")]
    assert read_items([{"image": address}], "input", open_to) == [Fetch(address, "input[0].image")]
    assert refusal("http://example.org/a.png", open_to).code == "address"
    assert refusal("file:///etc/passwd", open_to).code == "address"


def test_a_bad_item_stands_in_its_place_among_the_good():
    found = read_items(["a", "data:image/png,x", "b"], "input", LIMITS)
    assert (found[0], found[2]) == ("a", "b") and found[1].param == "input[1]"


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
        (["good", {"texts": "a"}], "input[1]", "wrong_part"),
        (["good", True], "input[1]", "token_input"),
        ({"texts": "a"}, "input", "wrong_part"),
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
        assert error.code in ("unknown_format", "not_supported", "broken_image", "too_many_pixels")
