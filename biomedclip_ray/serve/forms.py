"""What a bare string is: words, or an image in one of the forms that clients send.

A string that means an image is never embedded as words. Clients send images in two dozen forms (raw base64, data URIs
without a type, addresses, HTML tags, `str()` of base64), and the vector of the letters "iVBORw0KGgo" looks like any
other: each form is read as the image that it holds, or refused with the form that is understood.
"""

from __future__ import annotations

import base64
import re
from typing import NamedTuple

from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.images.formats import EXTENSIONS, identify
from biomedclip_ray.schema import Reason

ADDRESS = re.compile(r"(?:blob:)?[a-z][a-z0-9+.-]{1,15}://\S+", re.IGNORECASE)
NO_IMAGE = {
    "mark_up": "mark-up that points to an image",
    "not_here": "the name of an image file, which is not here",
    "part_as_text": "a part written as a string instead of the JSON object itself",
    "bytes_as_text": "an image's bytes turned into text",
}
"""Forms that mean an image and hold none that can be read."""

_EXTENSIONS = "|".join(map(re.escape, (*EXTENSIONS, "svg", "heic", "avif")))
_FILE_NAME = re.compile(rf"(?:\S+|(?:/|\.\.?/|~/|[a-z]:[\\/]).*)\.(?:{_EXTENSIONS})", re.IGNORECASE)
_PATH_CHARS = 4096  # no file system takes more, and 20 MB of dots would be looked through for seconds
_DATA_URI = re.compile(r"data:(?:image/|(?:[^\s,;/]*/[^\s,;]*)?(?:;[^\s,;]*)*,)", re.IGNORECASE)
_TAG = re.compile(r"\s*<(?:[a-z][^<>]*>\s*<){0,8}\s*(?:img|svg)\b", re.IGNORECASE)  # also inside others
_TAG_SOURCE = re.compile(r"""\bsrc\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>]+))""", re.IGNORECASE)
_MARKDOWN = re.compile(r"\s*!\[[^\]]*\]\(\s*<?([^\s)>]*).*", re.DOTALL)
_PART = re.compile(r"""[\s\[]{0,8}\{\s*["'](?:type|image|image_url|input_image|url|b64_json)["']\s*:""")
# what files, shells and str() leave around an image's letters
_WRAPPING = re.compile(r"""[\s\ufeff\u200b]*(?:url\(\s*)?(?:b?["'`])?(?:base64,)?""", re.IGNORECASE)
_WRAPPING_END = " \t\r\n\"'`)\ufeff\u200b"
# bytes that somebody turned into text: Python's repr, hex, or a decoding that lost or kept them
_BYTES = re.compile(
    r"""b(?:'|")(?:\\xff\\xd8\\xff|\\x89PNG|GIF8|RIFF|II\*|MM\\x00|BM)
    |(?i:(?:0x|\\x)?(?:89504e470d0a|ffd8ff[de])[0-9a-f]{20})
    |.?PNG\r?\n\x1a|GIF8[79]a.[\x00-\x1f]|ÿØÿ|[^\w\s]{2,4}.{0,4}JFIF\0""",
    re.DOTALL | re.VERBOSE,
)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{32,}")


class Form(NamedTuple):
    """What a string is ("words", "data_uri", "base64", "address" or one of NO_IMAGE), and the image's own part of
    it.
    """

    kind: str
    inside: str


def form_of(value: str) -> Form:
    """The form of a string; an image is not looked at further than its first letters."""
    around = _WRAPPING.match(value)
    bare = value[around.end() if around else 0 :].rstrip(_WRAPPING_END)
    if _DATA_URI.match(bare):
        return Form("data_uri", bare)
    if _TAG.match(value):
        source = _TAG_SOURCE.search(value)
        return _marked_up(next(filter(None, source.groups()), "") if source else "")
    if mark_down := _MARKDOWN.fullmatch(value):
        return _marked_up(mark_down[1])
    if ADDRESS.fullmatch(bare):
        return Form("address", bare)
    if len(bare) < _PATH_CHARS and _FILE_NAME.fullmatch(bare):
        return Form("not_here", bare)
    if _PART.match(value):
        return Form("part_as_text", value)
    if _BYTES.match(value.lstrip()):
        return Form("bytes_as_text", value)
    return Form("base64", bare) if _is_base64_of_image(bare[:400]) else Form("words", value)


def _marked_up(source: str) -> Form:
    """The image that a tag names, if the tag holds it."""
    return Form("data_uri" if source[:5].lower() == "data:" else "mark_up", source)


def _is_base64_of_image(start: str) -> bool:
    """Whether a string begins as no word does: 32 letters of base64 that are an image's first bytes."""
    found = _BASE64.match("".join(start.split()[:2]))
    if not found:
        return False
    letters = found[0][: len(found[0]) // 4 * 4].replace("-", "+").replace("_", "/")
    try:
        identify(base64.b64decode(letters))
    except ImageError as error:
        return error.reason is Reason.NOT_SUPPORTED
    return True
