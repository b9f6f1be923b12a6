"""Which file of an article a graphic's name in the XML means: by exact name, then by stem, never by substring. Pure.

Names are reduced to their last path component first, so that no name in an XML can reach beyond the article's files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# In the order of preference among files of one stem: a GIF beside a JPEG is its thumbnail.
PICTURES = ("jpg", "jpeg", "png", "tif", "tiff", "webp", "bmp", "gif")

_EXTENSION = re.compile(r"\.(jpe?g|png|tiff?|webp|bmp|gif|eps|svg|pdf)$", re.IGNORECASE)


def media_name(href: str) -> str:
    """The last path component of a name or key; "" where there is none.

    A DOI as PLOS writes it ("info:doi/10.1371/journal.pone.0012255.g001") becomes the name of PLOS's file,
    "pone.0012255.g001".
    """
    name = href.strip().replace("\\", "/").rpartition("/")[2]
    if href.startswith("info:doi/10.1371/journal."):
        name = name.removeprefix("journal.")
    return "" if name in (".", "..") or "\0" in name else name


def stem(name: str) -> str:
    """The name without a picture's extension: "pone.0012255.g001" has none, so its dots stay."""
    return _EXTENSION.sub("", name)


def match_media(name: str, files: Sequence[str]) -> str | None:
    """The one of `files` (names or keys) that a graphic's name means, or None.

    The exact name wins; then the stem, among pictures and files without an extension, JPEG, PNG and TIFF before GIF.
    """
    name = media_name(name)
    if not name:
        return None
    wanted = stem(name)
    best: tuple[int, str] | None = None
    for file in files:
        base = media_name(file)
        if base == name:
            return file
        if stem(base) == wanted:
            extension = base[len(wanted) + 1 :].lower()
            rank = PICTURES.index(extension) if extension in PICTURES else len(PICTURES)
            if best is None or rank < best[0]:
                best = rank, file
    return best[1] if best else None
