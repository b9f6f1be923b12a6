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
# would make libxml2 look for the DTD although load_dtd is off: findings/lxml_collect_ids_loads_dtd.sh.)
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
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail or self.reason.sentence


def article_element(xml: bytes) -> etree._Element:
    """The file's `article` element. Raises JatsError where it is empty, not well-formed, or holds no article."""
    if not xml or xml.isspace():
        raise JatsError(Reason.EMPTY_XML)
    try:
        root = etree.fromstring(without_references(xml), _PARSER)
    except etree.XMLSyntaxError as error:
        raise JatsError(Reason.BAD_XML, str(error)) from error
    return _article(root)


_OTHER_ENCODING = re.compile(rb"""encoding\s*=\s*["'](?!utf-8["']|us-ascii["'])""", re.IGNORECASE)
_OPEN, _CLOSE, _LESS = b"<ref-list", b"</ref-list>", ord("<")
_WANTED = re.compile(rb"<(?:fig|xref)")


def without_references(xml: bytes) -> bytes:
    """The same bytes without the reference lists that certainly hold nothing for us.

    A list stays where it holds a figure, an xref, a comment or CDATA, where a comment or processing instruction is open
    at one of its borders, after CDATA or entity declarations, and in another encoding than UTF-8. So a well-formed file
    gives the same article with and without the cut.
    """
    start = xml.find(_OPEN)
    if start < 0 or _OTHER_ENCODING.search(xml, 0, 200):
        return xml
    whole = memoryview(xml)
    pieces = []
    kept = 0
    while start >= 0:
        end = _matching_end(xml, start)
        if end < 0:
            break
        if _certain(xml, start, end) and not _WANTED.search(xml, start, end):
            pieces.append(whole[kept:start])
            kept = end + len(_CLOSE)
        start = xml.find(_OPEN, end)
    return b"".join((*pieces, whole[kept:])) if pieces else xml


def _matching_end(xml: bytes, start: int) -> int:
    """Where the end tag of the list that begins at `start` stands, lists inside it counted; -1: nowhere."""
    inside, end = start + 1, xml.find(_CLOSE, start)
    while end >= 0:
        inside = xml.find(_OPEN, inside, end)
        if inside < 0:
            return end
        inside, end = inside + 1, xml.find(_CLOSE, end + 1)
    return -1


def _certain(xml: bytes, start: int, end: int) -> bool:
    """Are both places certainly in no comment, processing instruction, CDATA section or DTD, and no `<!` between them?

    Single bytes are looked for, not `<!` and `<?`: that is memchr, and takes a quarter of the time.
    """
    declared = []
    at = xml.find(b"!", 1, end)
    while at >= 0:
        if xml[at - 1] == _LESS:
            declared.append(at)
        at = xml.find(b"!", at + 1, end)
    if declared:
        last = declared[-1]
        only_doctype = len(declared) == 1 and xml.startswith(b"DOCTYPE", last + 1)
        if not (only_doctype or xml.find(b"-->", last + 3, start) >= 0):
            return False
        if any(xml.startswith(b"[CDATA[", at + 1) for at in declared):
            return False
    return _instruction_closed(xml, 0, start) and _instruction_closed(xml, start, end)


def _instruction_closed(xml: bytes, start: int, end: int) -> bool:
    at = xml.rfind(b"?", start, end)
    while at > 0 and xml[at - 1] != _LESS:
        at = xml.rfind(b"?", start, at)
    return at <= 0 or xml.find(b"?>", at, end) >= 0


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
