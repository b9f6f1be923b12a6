"""What a request may hold: texts and pictures, counted, measured and named before the model sees one.

A picture comes in the request itself as a data URI; nothing is ever fetched from an address that a stranger names. Its
format is what its bytes say, and its pixels are read from the header (some 0.1 ms), so that a bomb of a few kilobytes is
refused before it is decoded. That a picture ends early is only seen when it is decoded: `replica.py` does that, picture
by picture.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from typing import Any

from PIL import Image

from biomedclip_ray.config import Serve
from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.images.formats import ONLINE_NAMES
from biomedclip_ray.images.image import size
from biomedclip_ray.schema import Reason

TEXT_CHARS = 20_000
"""Characters of a text that are tokenized; a context of 512 tokens is full long before. The rest counts as truncated,
so that one text of 30 MB does not hold up everybody else's batch."""

PICTURE_ERRORS = (
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

_PNG = b"\x89PNG\r\n\x1a\n"

Item = str | bytes
"""A text, or the bytes of a picture."""


class Refusal(Exception):
    """A request that gets an error in OpenAI's shape instead of an answer.

    Attributes: status (HTTP), message, param (the field at fault or None), code (a word for programs), retry_after
    (whole seconds or None).
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.retry_after = message, status, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """The error object that OpenAI's clients read."""
        kinds = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def read_items(value: Any, param: str, limits: Serve) -> list[Item]:
    """A string or a list of strings -> texts and pictures in the same order; raises Refusal naming the item."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise Refusal(f"{param} is an empty list", param=param, code="empty_input")
    if len(values) > limits.max_items:
        raise Refusal(
            f"{param} has {len(values)} items; this server takes at most {limits.max_items} in one request "
            "(serve.max_items): send several requests",
            param=param,
            code="too_many_items",
        )
    alone = not isinstance(value, list)
    return [read_item(item, param if alone else f"{param}[{n}]", limits) for n, item in enumerate(values)]


def read_item(value: Any, param: str, limits: Serve) -> Item:
    """One string -> a text, or the checked bytes of a `data:image/...;base64,` URI; raises Refusal."""
    if value is None:
        raise Refusal(f"{param} is missing", param=param, code="missing_field")
    if isinstance(value, int) or (isinstance(value, list) and all(isinstance(number, int) for number in value)):
        raise Refusal(
            f"{param} holds token numbers; this model has a tokenizer of its own: send strings "
            "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
            param=param,
            code="token_input",
        )
    if not isinstance(value, str):
        raise Refusal(f"{param} must be a string, not {type(value).__name__}", param=param, code="wrong_type")
    if value[:11].lower() == "data:image/":
        return read_picture(value, param, limits)
    if not value.strip():
        raise Refusal(f"{param} is empty", param=param, code="empty_input")
    return value


def read_picture(uri: str, param: str, limits: Serve) -> bytes:
    """The bytes behind a data URI, of a known format and within `limits.max_pixels`; raises Refusal."""
    head, comma, payload = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise Refusal(
            f"{param} is no base64 data URI; the form is data:image/png;base64,iVBORw0...",
            param=param,
            code="bad_data_uri",
        )
    try:
        data = base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise Refusal(f"{param}: the picture's base64 is broken ({error})", param=param, code="bad_base64") from error
    check_picture(data, param, limits.max_pixels)
    return data


def check_picture(data: bytes, param: str, max_pixels: int) -> None:
    """Read format and size from the header; raises Refusal for another format or too many pixels."""
    try:
        width, height = size(data)
    except ImageError as error:
        code = _CODES.get(error.reason, "broken_image")
        if code == "unknown_format":
            raise Refusal(f"{param}: the bytes are no {ONLINE_NAMES}", param=param, code=code) from error
        raise Refusal(f"{param}: {error}", param=param, code=code) from error
    if not width * height:
        raise Refusal(f"{param}: the picture's header is broken (no pixels)", param=param, code="broken_image")
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
