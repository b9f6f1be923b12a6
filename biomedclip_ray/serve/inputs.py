"""What a request may hold: texts and images, counted, measured and named before the model sees one.

An image comes in the request itself; its format is what its bytes say, and its pixels are read from the header (some
0.1 ms), so that a bomb of a few kilobytes is refused before it is decoded. That an image ends early is only seen when
it is decoded: `replica.py` does that, image by image.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from PIL import Image

from biomedclip_ray.config import Serve
from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.images.formats import ONLINE_NAMES, identify
from biomedclip_ray.images.image import size
from biomedclip_ray.schema import Reason
from biomedclip_ray.search.identifiers import names_articles
from biomedclip_ray.serve.errors import Refusal
from biomedclip_ray.serve.forms import ADDRESS, NO_IMAGE, form_of
from biomedclip_ray.serve.input_shapes import WEIGHTS

TEXT_CHARS = 20_000
"""Characters of a text that are tokenized; a context of 512 tokens is full long before. The rest counts as truncated,
so that one text of 30 MB does not hold up everybody else's batch."""

IMAGE_ERRORS = (
    ArithmeticError,
    EOFError,
    Image.DecompressionBombError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What Pillow's readers raise for broken files (found by 30,000 files with wrong bytes)."""

MOST_SOUGHT = 16
"""Parts of one search; each is embedded."""

FORM = 'send an image as "data:image/png;base64,iVBORw0..." or as {"image": "<base64>"}'


@dataclass(frozen=True)
class Fetch:
    """An image that lies at an address; `fetch.py` gets it where the operator allows that."""

    address: str
    param: str


Item = str | bytes
"""A text, or the bytes of an image."""

Wanted = Item | Fetch
"""An item, or where one is to be got."""


@dataclass(frozen=True)
class FigureId:
    """A figure of the index."""

    pair_id: str


@dataclass(frozen=True)
class Sought:
    """A part of a search, and how much it counts."""

    what: Wanted | FigureId
    weight: float = 1.0


def read_items(value: Any, param: str, limits: Serve) -> list[Wanted | Refusal]:
    """A string, a part or a list of them -> texts and images in the same order.

    A refused item stands in its place as the Refusal that names it. Raises Refusal for what is wrong with the whole.
    """
    values = value if isinstance(value, list) else [value]
    if not values:
        raise Refusal(f"{param} is an empty list", param=param, code="empty_input")
    if all(isinstance(number, int) for number in values):
        raise _tokens(param)
    if len(values) > limits.max_items:
        raise Refusal(
            f"{param} has {len(values)} items; this server takes at most {limits.max_items} in one request "
            "(serve.max_items): send several requests",
            param=param,
            code="too_many_items",
        )
    alone = not isinstance(value, list)
    found: list[Wanted | Refusal] = []
    for n, item in enumerate(values):
        try:
            found.append(read_item(item, param if alone else f"{param}[{n}]", limits))
        except Refusal as refusal:
            found.append(refusal)
    return found


def read_item(value: Any, param: str, limits: Serve) -> Wanted:
    """One string or part -> a text, the checked bytes of an image, or where to fetch one; raises Refusal."""
    if value is None:
        raise Refusal(f"{param} is missing", param=param, code="missing_field")
    if isinstance(value, int | float) or (isinstance(value, list) and all(isinstance(n, int) for n in value)):
        raise _tokens(param)
    if isinstance(value, dict):
        return _part(value, param, limits)
    if not isinstance(value, str):
        raise Refusal(f"{param} must be a string or a part, not {type(value).__name__}", param=param, code="wrong_type")
    return _string(value, param, limits)


def read_sought(value: Any, param: str, limits: Serve) -> list[Sought]:
    """What a search asks for: a string, a part, {"figure": pair_id}, or a list of them, with weights;
    raises Refusal.
    """
    values = value if isinstance(value, list) else [value]
    if not values or len(values) > MOST_SOUGHT:
        raise Refusal(f"{param} needs 1 to {MOST_SOUGHT} parts, not {len(values)}", param=param, code="wrong_query")
    found = []
    for n, part in enumerate(values):
        name = f"{param}[{n}]" if isinstance(value, list) else param
        weight: Any = 1.0
        if isinstance(part, dict) and "weight" in part:
            part = dict(part)
            weight = part.pop("weight")
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not (number and WEIGHTS[0] <= weight <= WEIGHTS[1]):
                message = f"{name}.weight must be a number from {WEIGHTS[0]:g} to {WEIGHTS[1]:g}"
                raise Refusal(message, param=f"{name}.weight", code="wrong_value")
        if isinstance(part, str) and names_articles(part):  # a link that is no image's address
            found.append(Sought(part))
        elif isinstance(part, dict) and set(part) == {"figure"}:
            found.append(Sought(FigureId(_text(part["figure"], f"{name}.figure", limits)), float(weight)))
        else:
            found.append(Sought(read_item(part, name, limits), float(weight)))
    return found


def read_image(value: Any, param: str, limits: Serve) -> Wanted:
    """What is said to be an image: a data URI, bare base64, or an address; raises Refusal."""
    if not isinstance(value, str) or not value.strip():
        raise Refusal(f"{param} must be a string: {FORM}", param=param, code="wrong_type")
    stripped = value.strip()
    if stripped[:5].lower() == "data:":
        return _data_uri(stripped, param, limits)
    if ADDRESS.fullmatch(stripped):
        return _address(stripped, param, limits)
    return _checked(_decoded(stripped, param), param, limits)


def read_file(data: bytes, param: str, limits: Serve) -> bytes:
    """The bytes of an uploaded image; raises Refusal."""
    if not data:
        raise Refusal(f"{param}: the file is empty", param=param, code="empty_input")
    return _checked(data, param, limits)


def _part(part: dict[str, Any], param: str, limits: Serve) -> Wanted:
    """{"type": "text", "text"}, {"type": "image_url", "image_url": {"url"}}, {"text"} or {"image"}; raises Refusal."""
    forms = '{"type": "text", "text": ...}, {"type": "image_url", "image_url": {"url": ...}} or {"image": "<base64>"}'
    keys = set(part) - {"type"}
    kind = part.get("type", next(iter(keys), None) if len(keys) == 1 else None)
    wanted = {"text": "text", "image_url": "image_url", "image": "image", "input_image": "image_url"}
    if not isinstance(kind, str) or keys != {wanted.get(kind)}:
        raise Refusal(f"{param} is no part that is known; the forms are {forms}", param=param, code="wrong_part")
    if kind == "text":
        return _text(part["text"], f"{param}.text", limits)
    if kind == "image":
        return read_image(part["image"], f"{param}.image", limits)
    url = part["image_url"]
    if isinstance(url, dict):
        if "url" not in url or not set(url) <= {"url", "detail"}:
            raise Refusal(
                f'{param}.image_url must be {{"url": "data:image/png;base64,..."}}',
                param=f"{param}.image_url",
                code="wrong_part",
            )
        url = url["url"]
    return read_image(url, f"{param}.image_url", limits)


def _text(value: Any, param: str, limits: Serve) -> str:
    """What is said to be a text; that it looks like an image is no mistake then, unless it is bytes. Raises Refusal."""
    if not isinstance(value, str):
        raise Refusal(f"{param} must be a string, not {type(value).__name__}", param=param, code="wrong_type")
    if not value.strip():
        raise Refusal(f"{param} is empty", param=param, code="empty_input")
    if not _is_unicode(value):
        raise Refusal(f"{param} holds half a character (a lone surrogate)", param=param, code="bad_text")
    return value


def _string(value: str, param: str, limits: Serve) -> Wanted:
    """A bare string: an image if it has the form of one, else words; raises Refusal."""
    kind, inside = form_of(value)
    if kind == "words":
        return _text(value, param, limits)
    if kind == "data_uri":
        return _data_uri(inside, param, limits)
    if kind == "base64":
        return _checked(_decoded(inside, param), param, limits)
    if kind == "address":
        return _address(inside, param, limits)
    raise Refusal(f"{param} is {NO_IMAGE[kind]}: {FORM}", param=param, code=kind)


def _address(address: str, param: str, limits: Serve) -> Fetch:
    """An https address where the operator lets addresses be fetched; raises Refusal."""
    if not limits.fetch_hosts:
        raise Refusal(
            f"{param} is an address; this server fetches none (serve.fetch_hosts): {FORM}",
            param=param,
            code="address",
        )
    if not address.lower().startswith("https://"):
        raise Refusal(f"{param}: only https addresses are fetched: {FORM}", param=param, code="address")
    return Fetch(address, param)


def _data_uri(uri: str, param: str, limits: Serve) -> bytes:
    """The bytes behind a data URI of any type, of a known format and within the limits; raises Refusal."""
    head, comma, payload = uri.partition(",")
    if not comma or not head.lower().rstrip().endswith(";base64"):
        raise Refusal(
            f"{param} is no base64 data URI; the form is data:image/png;base64,iVBORw0...",
            param=param,
            code="bad_data_uri",
        )
    return _checked(_decoded(payload, param), param, limits)


def _decoded(payload: str, param: str) -> bytes:
    """Base64, also of the URL alphabet, in lines or without its padding; raises Refusal."""
    if not payload.isascii():
        raise Refusal(f"{param}: the image's base64 is broken: {FORM}", param=param, code="bad_base64")
    clean = "".join(payload.split()) if any(c in payload for c in " \n\r\t") else payload
    if "-" in clean or "_" in clean:
        clean = clean.replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(clean + "=" * (-len(clean) % 4), validate=True)
    except binascii.Error as error:
        raise Refusal(
            f"{param}: the image's base64 is broken ({error}): {FORM}", param=param, code="bad_base64"
        ) from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tokens(param: str) -> Refusal:
    return Refusal(
        f"{param} holds token numbers; this model has a tokenizer of its own: send strings "
        "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
        param=param,
        code="token_input",
    )


def _checked(data: bytes, param: str, limits: Serve) -> bytes:
    check_image(data, param, limits.max_pixels)
    return data


def check_image(data: bytes, param: str, max_pixels: int) -> None:
    """Read format and size from the header; raises Refusal for another format or too many pixels."""
    try:
        if not identify(data).online:
            raise Refusal(f"{param}: the bytes are no {ONLINE_NAMES}", param=param, code="unknown_format")
        width, height = size(data)
    except ImageError as error:
        code = _CODES.get(error.reason, "broken_image")
        if code == "unknown_format":
            raise Refusal(f"{param}: the bytes are no {ONLINE_NAMES}: {FORM}", param=param, code=code) from error
        raise Refusal(f"{param}: {error}", param=param, code=code) from error
    except IMAGE_ERRORS as error:
        raise Refusal(f"{param}: the image's header is broken ({error})", param=param, code="broken_image") from error
    if not width * height:
        raise Refusal(f"{param}: the image's header is broken (no pixels)", param=param, code="broken_image")
    if width * height > max_pixels:
        raise Refusal(
            f"{param}: {width} x {height} pixels; at most {max_pixels:,} are taken (serve.max_pixels)",
            param=param,
            code="too_many_pixels",
        )


_CODES = {
    Reason.UNKNOWN_FORMAT: "unknown_format",
    Reason.NOT_SUPPORTED: "not_supported",
    Reason.TOO_MANY_PIXELS: "too_many_pixels",
}
