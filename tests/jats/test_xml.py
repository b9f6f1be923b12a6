"""Bytes from outside: whatever they hold, they give an article or a JatsError, and cutting references
changes nothing.
"""

from __future__ import annotations

import pickle
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lxml import etree

from biomedclip_ray.jats import xml as jats_xml
from biomedclip_ray.jats.article import JatsError, parse_article
from biomedclip_ray.jats.xml import without_references
from biomedclip_ray.schema import Reason

ARTICLE = (Path(__file__).parent / "data" / "article.xml").read_bytes()
REFERENCES = b"<ref-list><ref>Smith<?supplied-pmid 1?> 1999</ref></ref-list>"
BILLION_LAUGHS = (
    '<!DOCTYPE article [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    + "]>"
).encode()


def reason_of(xml: bytes) -> Reason:
    with pytest.raises(JatsError) as caught:
        parse_article(xml)
    return caught.value.reason


@pytest.mark.parametrize("xml", [b"", b" \n\t "])
def test_an_empty_file_is_named_so(xml):
    assert reason_of(xml) is Reason.EMPTY_XML


@pytest.mark.parametrize(
    "xml",
    [
        ARTICLE[: len(ARTICLE) // 2],
        ARTICLE[:-3],
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"\0" * 100,
        b"<article>\0</article>",
        b"<article>\xff\xfe</article>",
        b'<?xml version="1.0" encoding="no-such-encoding"?><article/>',
        b"<article>&undeclared;</article>",
        b"<article>" * 300 + b"</article>" * 300,
        b"<article>" + b"x" * 10_100_000 + b"</article>",
        b"<Error><Code>NoSuchKey</Code></Error>",
        b"\n<?xml version='1.0'?><article/>",
        b"plain text",
    ],
    ids=lambda xml: repr(xml[:24]),
)
def test_what_is_no_article_is_bad_xml(xml):
    assert reason_of(xml) is Reason.BAD_XML


def test_a_cut_file_of_the_bucket_is_dropped_with_a_reason(corpus):
    xml = (corpus / "bucket" / "PMC2924383.1" / "PMC2924383.1.xml").read_bytes()
    cut = {reason_of(xml[: int(len(xml) * share)]) for share in (0.1, 0.5, 0.9, 0.99)}
    assert cut == {Reason.BAD_XML}


@pytest.mark.parametrize("encoding", ["utf-16", "iso-8859-1", "utf-8-sig", "ascii"])
def test_other_encodings_give_the_same_article(encoding):
    text = "<article><body><fig><caption><p>na\u00efve caf\u00e9</p></caption></fig></body></article>"
    name = {"utf-8-sig": "utf-8", "ascii": "us-ascii"}.get(encoding, encoding)
    xml = f'<?xml version="1.0" encoding="{name}"?>{text}'.encode(encoding, errors="xmlcharrefreplace")
    assert parse_article(xml).figures[0].caption == "na\u00efve caf\u00e9"


@pytest.mark.parametrize("article", [b"<article><p>&a9;</p></article>", b'<article><fig id="&a9;"/></article>'])
def test_a_billion_laughs_are_refused(article):
    assert reason_of(BILLION_LAUGHS + article) is Reason.BAD_XML


def test_external_entities_and_dtds_are_not_read(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    dtd = tmp_path / "own.dtd"
    dtd.write_text('<!ENTITY own "secret">')
    body = "<article><body><fig><caption><p>a&own;b</p></caption></fig></body></article>"
    for doctype in (
        f'<!DOCTYPE article [<!ENTITY own SYSTEM "{secret.as_uri()}">]>',
        f'<!DOCTYPE article SYSTEM "{dtd.as_uri()}">',
        f'<!DOCTYPE article [<!ENTITY % all SYSTEM "{dtd.as_uri()}"> %all;]>',
    ):
        assert parse_article((doctype + body).encode()).figures[0].caption == "a&own;b"


@pytest.mark.parametrize(
    "where", ["http://dtd.nlm.nih.gov/publishing/3.0/journalpublishing3.dtd", "JATS-archivearticle1.dtd"]
)
def test_a_doctype_is_no_reason_to_load_anything(where):
    article = parse_article(f'<!DOCTYPE article PUBLIC "-//NLM//DTD" "{where}"><article article-type="a"/>'.encode())
    assert article.article_type == "a"


def test_the_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(JatsError(Reason.BAD_XML, "line 1")))
    assert (error.reason, str(error)) == (Reason.BAD_XML, "line 1")
    assert str(JatsError(Reason.EMPTY_XML)) == "the XML file is empty"


# -- reference lists


def test_a_reference_list_is_cut_out():
    xml = b"<article><back>" + REFERENCES + b"<app/></back></article>"
    assert without_references(xml) == b"<article><back><app/></back></article>"


def test_several_and_nested_reference_lists_are_cut_out():
    nested = b"<ref-list><title>a</title>" + REFERENCES + REFERENCES + b"</ref-list>"
    assert without_references(b"<a>" + nested + b"b" + REFERENCES + b"</a>") == b"<a>b</a>"


@pytest.mark.parametrize(
    "xml",
    [
        b'<a><ref-list><p><fig id="F1"/></p></ref-list></a>',
        b'<a><ref-list><p><xref rid="F1"/></p></ref-list></a>',
        b"<a><ref-list><!-- </ref-list> --></ref-list></a>",
        b"<a><ref-list><?x </ref-list> ?></ref-list></a>",
        b"<a><!-- <ref-list> --><ref-list></ref-list></a>"[:22] + b"</ref-list> --></a>",
        b"<a><?x <ref-list></ref-list> ?></a>",
        b"<a><p><![CDATA[<ref-list></ref-list>]]></p></a>",
        b"<a><p><![CDATA[<!-- --><ref-list></ref-list>]]></p></a>",
        b'<!DOCTYPE a [<!ENTITY e "<ref-list></ref-list>">]><a/>',
        b"<!-- <!DOCTYPE <ref-list></ref-list> --><a/>",
        b"<!--><ref-list></ref-list>--><a/>",
        b"<a><ref-list><ref-list></ref-list></a>",
        b'<?xml version="1.0" encoding="iso-2022-jp"?><a><ref-list></ref-list></a>',
    ],
)
def test_a_reference_list_stays_where_it_may_matter_or_its_borders_are_in_doubt(xml):
    assert without_references(xml) == xml


JUNK = st.lists(st.sampled_from("<ref-list> </ref-list> <!-- --> <? ?> ]]> <!DOCTYPE <fig/> ! ? x".split()), max_size=3)
HIDDEN = st.tuples(st.sampled_from(["<!--|-->", "<?x |?>", "<![CDATA[|]]>", "|"]), JUNK).map(
    lambda drawn: drawn[0].replace("|", "".join(drawn[1]))
)
CONTENT = st.recursive(
    HIDDEN,
    lambda inner: st.tuples(st.sampled_from(["ref-list", "p", "fig"]), st.lists(inner, max_size=3)).map(
        lambda drawn: f"<{drawn[0]}>{''.join(drawn[1])}</{drawn[0]}>"
    ),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(CONTENT, max_size=5))
@example(["<![CDATA[", "<!---->", "<ref-list></ref-list>", "]]>"])
def test_cutting_references_changes_nothing_else_in_a_well_formed_file(content):
    xml = ("<article>" + "".join(content) + "</article>").encode()
    parser = etree.XMLParser(resolve_entities=False, strip_cdata=False)
    try:
        whole = etree.fromstring(xml, parser)
    except etree.XMLSyntaxError:
        return
    cut = etree.fromstring(without_references(xml), parser)
    etree.strip_elements(whole, "ref-list", with_tail=False)
    etree.strip_elements(cut, "ref-list", with_tail=False)
    assert etree.tostring(cut) == etree.tostring(whole)


def test_real_articles_are_the_same_with_and_without_their_references(corpus, monkeypatch):
    with tarfile.open(corpus / "jats" / "jats-2026-24.tar.gz") as tar:
        files = [tar.extractfile(m).read() for m in tar if m.isfile()]  # type: ignore[union-attr]
    files += [path.read_bytes() for path in sorted(corpus.glob("bucket/PMC99*/*.xml"))]
    cut = [parse_article(xml) for xml in files]
    assert sum(len(without_references(xml)) < len(xml) for xml in files) > 0.8 * len(files)
    monkeypatch.setattr(jats_xml, "without_references", lambda xml: xml)
    assert [parse_article(xml) for xml in files] == cut


# -- fuzzing


def mutated(rng: random.Random, article: bytes = ARTICLE) -> bytes:
    """An article with a few bytes, tags or stretches changed, doubled, moved or left out."""
    xml = bytearray(article)
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(xml)), rng.randint(1, 30)
        match rng.randrange(5):
            case 0:
                xml[at : at + 1] = bytes([rng.choice((rng.randrange(256), rng.randrange(97, 123)))])
            case 1:
                del xml[at : at + length]
            case 2:
                xml[at:at] = xml[at : at + length]
            case 3:
                tags = b"<fig> </fig> <p> <ref-list> <!-- --> &amp; &x; <xref/> ]]> <?".split()
                xml[at:at] = rng.choice(tags)
            case 4:
                other = rng.randrange(len(xml))
                xml[at : at + length] = xml[other : other + length]
    return bytes(xml)


def parses_or_is_refused(xml: bytes) -> bool:
    try:
        article = parse_article(xml)
    except JatsError as error:
        assert error.reason in (Reason.BAD_XML, Reason.EMPTY_XML)
        return False
    for figure in article.figures:
        assert figure.caption == " ".join(figure.caption.split())
        assert not any(set("\0\1") & set(mention.sentence) for mention in figure.mentions)
        assert not any("/" in name or "\0" in name for picture in figure.graphics for name in picture)
    return True


def test_mutated_articles_parse_or_are_refused():
    rng = random.Random(4)
    parsed = sum(parses_or_is_refused(mutated(rng)) for _ in range(1500))
    assert 100 < parsed < 1400


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(data):
    assert parses_or_is_refused(data) is False


WORDS = st.lists(st.text("abcxyz", min_size=1, max_size=5), min_size=1, max_size=8)
INLINE = st.sampled_from(["italic", "bold", "sub", "sc", "styled-content", "named-content", "ext-link", "monospace"])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(WORDS, st.data())
def test_words_are_never_glued_or_split_by_markup(words, data):
    text = " ".join(words)
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, len(text)))
    tag = data.draw(INLINE)
    marked = f"{text[:begin]}<{tag}>{text[begin:end]}</{tag}>{text[end:]}"
    xml = f"<article><fig><caption><title>{marked}</title><p>{marked}</p></caption></fig></article>"
    (figure,) = parse_article(xml.encode()).figures
    assert figure.caption == figure.plain_caption == f"{text} {text}"


TAGS = st.sampled_from(
    "p sup italic fig xref index-term alt-text disp-formula inline-formula alternatives list label caption break fn td"
    " graphic table-wrap supplementary-material title tex-math".split()
)


def wrapped(tag: str, content: list[str]) -> str:
    kind = ' ref-type="bibr"' if tag == "xref" else ""
    return f"<{tag}{kind}>{''.join(content)}</{tag}>"


CITATION = st.sampled_from(
    ['<xref rid="F">1</xref>', '<xref rid="F G"/>', '<xref ref-type="bibr" rid="F"><sup>1</sup></xref>']
)
NESTED = st.recursive(
    CITATION | st.just("text. "),
    lambda inner: st.builds(wrapped, TAGS, st.lists(inner, max_size=3)),
    max_leaves=10,
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(NESTED, max_size=4))
@example(['<p><xref ref-type="bibr"><sup><xref rid="F"/></sup></xref></p>'])
@example(['<p><index-term><xref rid="F"/></index-term></p>'])
def test_xrefs_in_any_place_are_matched_to_their_sentences(content):
    body = "".join(content)
    article = parse_article(f'<article><body>{body}<fig id="F"><label>1</label></fig></body></article>'.encode())
    mentions = article.figures[-1].mentions
    assert all(mention.sentence for mention in mentions)
    assert bool(mentions) <= ('rid="F' in body)
