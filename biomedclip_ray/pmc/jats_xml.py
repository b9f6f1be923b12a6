"""The bytes of a JATS file -> its `article` element, hardened: no entity expanded, no DTD loaded, no network asked.

Trade-off: reference lists are cut out of the bytes before parsing (a third of many files; parsing takes 0.66 of the
time without them), so they are not checked for well-formedness. A list that could hold a figure, or whose borders
cannot be told for sure, stays (`without_references`).
"""

from __future__ import annotations

import re
from html.entities import html5

from lxml import etree

from biomedclip_ray.schema import Reason

# Comments and processing instructions are no text, and dropping them joins the text around them. (collect_ids=False
# would make libxml2 look for the DTD although load_dtd is off.)
_PARSER = etree.XMLParser(
    resolve_entities=False,
    no_network=True,
    load_dtd=False,
    huge_tree=False,
    recover=False,
    remove_comments=True,
    remove_pis=True,
)


class JatsError(ValueError):
    """A file that is no JATS article; `reason` is `EMPTY_XML` or `BAD_XML`."""

    def __init__(self, reason: Reason, detail: str = ""):
        super().__init__(detail or reason.sentence)
        self.reason = reason


def article_element(xml: bytes) -> etree._Element:
    """The file's `article` element. Raises JatsError where it is empty, not well-formed, or holds no article."""
    if not xml.strip():
        raise JatsError(Reason.EMPTY_XML)
    try:
        root = etree.fromstring(without_references(xml), _PARSER)
    except etree.XMLSyntaxError as error:
        raise JatsError(Reason.BAD_XML, str(error)) from error
    return _article(root)


_MATTERS = re.compile(rb"<(?:!|fig|xref|graphic)")
_ENCODING = re.compile(
    rb"""^(?:\xef\xbb\xbf)?<\?xml[^>]*?encoding\s*=\s*["'](?!utf-8["']|us-ascii["'])""", re.IGNORECASE
)
_OPEN, _CLOSE = b"<ref-list", b"</ref-list>"


def without_references(xml: bytes) -> bytes:
    """The same bytes without the reference lists that certainly hold nothing for us.

    A list stays where it holds a figure, an xref, a graphic, a comment or CDATA; where a comment or processing
    instruction is open at one of its borders; and everywhere in a file with CDATA, entity declarations or another
    encoding than UTF-8. So parsing a well-formed file gives the same article with and without the cut.
    """
    start = xml.find(_OPEN)
    if start < 0 or _ENCODING.match(xml) or b"<![CDATA[" in xml or b"<!ENTITY" in xml:
        return xml
    pieces = []
    kept = 0
    while start >= 0:
        end = xml.find(_CLOSE, start)
        # Nested lists: the outer one ends after as many ends as there were beginnings.
        begun, ended = xml.count(_OPEN, start + 1, max(end, 0)), 0
        while end >= 0 and ended < begun:
            following = xml.find(_CLOSE, end + 1)
            begun += xml.count(_OPEN, end, max(following, 0))
            end, ended = following, ended + 1
        if end < 0:
            break
        stop = end + len(_CLOSE)
        if _in_content(xml, start) and _in_content(xml, end) and not _MATTERS.search(xml, start, stop):
            pieces.append(xml[kept:start])
            kept = stop
        start = xml.find(_OPEN, stop)
    return b"".join((*pieces, xml[kept:])) if pieces else xml


def _in_content(xml: bytes, at: int) -> bool:
    """Is no comment and no processing instruction open here? (A doubt counts as open.)"""
    for begin, finish in ((b"<?", b"?>"), (b"<!--", b"-->")):
        begun = xml.rfind(begin, 0, at)
        if begun >= 0 and xml.find(finish, begun, at) < 0:
            return False
    return True


def _article(root: etree._Element) -> etree._Element:
    """The first `article` of an answer of OAI-PMH or eFetch, without a namespace."""
    article = root if root.tag == "article" else next(root.iter("{*}article"), None)
    if article is None:
        raise JatsError(Reason.BAD_XML, f"no article element; the root is {root.tag!r}")
    namespace = article.tag[: article.tag.find("}") + 1]
    if namespace:
        for element in article.iter(namespace + "*"):
            element.tag = element.tag[len(namespace) :]
    return article


def replace_entity(entity: etree._Element) -> None:
    """Put a character in the place of an ISO entity (&alpha;); others stay as they are written, never expanded."""
    written = entity.text or ""
    text = html5.get(written.removeprefix("&"), written) + (entity.tail or "")
    before, parent = entity.getprevious(), entity.getparent()
    if before is not None:
        before.tail = (before.tail or "") + text
    elif parent is not None:
        parent.text = (parent.text or "") + text
    if parent is not None:
        entity.tail = None
        parent.remove(entity)
