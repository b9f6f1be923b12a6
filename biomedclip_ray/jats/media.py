"""Which file of an article a graphic's name in the XML means: by exact name, then by stem, never by substring. Pure.

Names are reduced to their last path component first, so that no name in an XML can reach beyond the article's files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote

from biomedclip_ray.images.formats import ARTICLE_EXTENSIONS

VECTOR_EXTENSIONS = ("svg", "eps", "pdf", "ai")
"""Drawings, which are not decoded here."""

_EXTENSION = re.compile(rf"\.({'|'.join(map(re.escape, (*ARTICLE_EXTENSIONS, 'svg', 'eps', 'pdf')))})$", re.IGNORECASE)


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
    """The name without an image's extension: "pone.0012255.g001" has none, so its dots stay."""
    return _EXTENSION.sub("", name)


def matching_media(name: str, files: Sequence[str]) -> list[str]:
    """Those of `files` (names or keys) that a graphic's name means, the best first; none where there is none.

    The exact name comes first, percent signs decoded if need be ("my%20fig.jpg"); then the stem, among images and files
    without an extension, in the order of the table of formats. A GIF beside another is its thumbnail and no match.
    """
    name = media_name(name)
    if not name:
        return []
    names = {name, media_name(unquote(name))}
    stems = {stem(each) for each in names}
    found: list[tuple[int, str]] = []
    for file in files:
        base = media_name(file)
        forms = {base, media_name(unquote(base))}
        if base == name:
            found.append((-2, file))
        elif forms & names:
            found.append((-1, file))
        elif alike := next((form for form in forms if stem(form) in stems), None):
            extension = alike[len(stem(alike)) + 1 :].lower()
            if extension in ARTICLE_EXTENSIONS or not extension:
                rank = ARTICLE_EXTENSIONS.index(extension) if extension else len(ARTICLE_EXTENSIONS)
                found.append((rank, file))
    found.sort()
    best = [file for _, file in found]
    return [file for file in best if file is best[0] or not file.lower().endswith(".gif")]


def match_media(name: str, files: Sequence[str]) -> str | None:
    """The best of `matching_media`, or None."""
    return next(iter(matching_media(name, files)), None)
