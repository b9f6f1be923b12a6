"""JATS parsing: real articles against their truth, each corner case on its own, and hostile or broken bytes."""

from __future__ import annotations

import dataclasses
import json
import re
import tarfile
from pathlib import Path

import pytest
from lxml import etree

from biomedclip_ray.figures.captions import training_text
from biomedclip_ray.jats.article import Article, Figure, JatsError, Mention, parse_article, parse_figures
from biomedclip_ray.jats.media import match_media
from biomedclip_ray.schema import Reason

HERE = Path(__file__).parent / "data"
NAMESPACES = 'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML"'


def parse(body: str, front: str = "", prolog: str = "") -> Article:
    return parse_article(f"{prolog}<article {NAMESPACES}>{front}<body>{body}</body></article>".encode())


def only_figure(body: str, front: str = "") -> Figure:
    (figure,) = parse(body, front).figures
    return figure


def figure_with(caption: str) -> Figure:
    return only_figure(f'<fig id="F1"><caption>{caption}</caption></fig>')


def sentences(body: str) -> list[str]:
    """What cites F1, which floats elsewhere."""
    article = parse(body + '<fig id="F1"><label>Figure 1.</label></fig>')
    return [mention.sentence for mention in article.figures[-1].mentions]


def collapsed(text: str) -> str:
    return " ".join(text.split())


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def archived(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]


# -- against truth


def test_an_article_with_every_case_gives_the_golden_rows():
    expected = json.loads((HERE / "article.json").read_text(encoding="utf-8"))
    article = parse_article((HERE / "article.xml").read_bytes())
    assert json.loads(json.dumps(dataclasses.asdict(article))) == expected


def test_every_expected_figure_of_the_real_bucket_is_found_exactly(corpus):
    articles: dict[str, Article] = {}
    rows = json_lines(corpus / "expected" / "figures.jsonl")
    for row in rows:
        name = row["pmcid_version"]
        folder = corpus / "bucket" / name
        if name not in articles:
            articles[name] = parse_article((folder / f"{name}.xml").read_bytes())
        (figure,) = [figure for figure in articles[name].figures if figure.xml_id == row["fig_id"]]
        captions = {collapsed(row["caption"]), collapsed(row.get("caption_without_supplementary", row["caption"]))}
        assert figure.caption in captions, (name, figure.xml_id)
        assert figure.label == row["label"]
        files = sorted(path.name for path in folder.iterdir())
        found = [match_media(picture[0], files) for picture in figure.graphics]
        assert [file for file in found if file] == row["graphics"]
        assert [picture[0] for picture, file in zip(figure.graphics, found, strict=True) if not file] == row.get(
            "missing", []
        )
        assert [file for picture in figure.graphics for file in picture[1:]] == row.get("alternates", [])
        # The truth counts xrefs, and a sentence counts once however many xrefs it holds.
        for in_body, count in ((True, row["mentions"]), (False, row.get("mentions_outside_body", 0))):
            mentions = [mention for mention in figure.mentions if mention.in_body is in_body]
            assert len(mentions) <= count and bool(mentions) == bool(count), (name, figure.xml_id)
    assert len(rows) == 102
    assert {name: len(article.figures) for name, article in articles.items()} == {
        name: sum(row["pmcid_version"] == name for row in rows) for name in articles
    }


def test_articles_of_2026_give_the_figures_that_two_other_extractions_gave(corpus):
    files = archived(corpus / "jats" / "jats-2026-24.tar.gz")
    articles = {name.removesuffix(".xml"): parse_article(data) for name, data in files.items()}
    rows = json_lines(corpus / "expected" / "jats-2026-24.jsonl")
    for row in rows:
        (figure,) = [figure for figure in articles[row["pmcid"]].figures if figure.xml_id == row["fig_id"]]
        assert (figure.label or "") == (row["label"] or "")
        assert figure.caption == collapsed(row["caption"])
        assert [picture[0] for picture in figure.graphics] == row["hrefs"]
        assert [name for picture in figure.graphics for name in picture[1:]] == row.get("alternate_hrefs", [])
        mentions = [mention for mention in figure.mentions if mention.in_body]
        assert len(mentions) <= row["mentions"] and bool(mentions) == bool(row["mentions"])
    assert len(rows) == sum(len(article.figures) for article in articles.values()) == 91


@pytest.mark.parametrize("name", ["PMC99000004.1", "PMC99000009.1", "PMC2924383.1", "PMC99000012.1"])
def test_every_xref_in_a_body_is_met_once(corpus, name):
    """Each xref gets a text of its own, and a list on both sides that ends its sentence: as many mentions as xrefs."""
    root = etree.fromstring((corpus / "bucket" / name / f"{name}.xml").read_bytes())
    for number, xref in enumerate(list(root.iter("xref"))):
        for child in list(xref):
            xref.remove(child)
        xref.text = f"Figure {number}"
        after = etree.Element("list")
        after.tail, xref.tail = xref.tail, None
        xref.addprevious(etree.Element("list"))
        xref.addnext(after)
    figures = {figure.xml_id: figure for figure in parse_article(etree.tostring(root)).figures}
    counts = {
        row["fig_id"]: (row["mentions"], sum(mention.in_body for mention in figures[row["fig_id"]].mentions))
        for row in json_lines(corpus / "expected" / "figures.jsonl")
        if row["pmcid_version"] == name and row["mentions"] is not None
    }
    assert counts and all(expected == found for expected, found in counts.values()), counts


def test_all_development_articles_parse_and_empty_files_are_named_so(corpus):
    empty, figures, articles = [], [], 0
    for name, data in archived(corpus / "jats" / "jats-dev-400.tar.gz").items():
        try:
            article = parse_article(data)
        except JatsError as error:
            assert error.reason is Reason.EMPTY_XML and not data
            empty.append(name)
            continue
        articles += 1
        assert article.title and article.journal and 1990 < (article.year or 0) < 2021
        figures += article.figures
    assert (articles, len(empty), len(figures)) == (398, 2, 1833)
    assert sum(len(figure.graphics) > 1 for figure in figures) == 4
    assert sum(not figure.caption for figure in figures) == 19
    assert sum("." in (figure.xml_id or "") for figure in figures) == 169
    assert sum(bool(figure.mentions) for figure in figures) > 1800


def test_licences_of_the_development_articles_are_those_of_their_list(corpus):
    """The list says "by" for PMC5471463 and the like by its link; there the text's NonCommercial is taken."""
    files = archived(corpus / "jats" / "jats-dev-400.tar.gz")
    lines = (corpus / "jats" / "jats-dev-400.tsv").read_text(encoding="utf-8").splitlines()[1:]
    listed = {line.split("\t")[0]: line.split("\t")[2] for line in lines}
    compared = 0
    for name, data in files.items():
        told = listed[name.removesuffix(".xml")]
        if data and re.fullmatch(r"by(-nc)?(-sa|-nd)?|zero", told):
            expected = "CC0" if told == "zero" else "CC " + told.upper()
            assert parse_article(data).license == expected, name
            compared += 1
    assert compared > 385


def test_figures_alone_are_the_articles_without_mentions():
    xml = (HERE / "article.xml").read_bytes()
    bare = tuple(dataclasses.replace(figure, mentions=()) for figure in parse_article(xml).figures)
    assert parse_figures(xml) == bare


def test_figures_alone_tell_citations_that_do_not_say_what_they_are(corpus):
    """A superscript citation is left out of the plain caption, also where its xref has no ref-type."""
    told = 0
    for data in archived(corpus / "jats" / "jats-dev-400.tar.gz").values():
        untyped = data.replace(b' ref-type="bibr"', b"")
        if data and untyped != data:
            figures = parse_article(untyped).figures
            assert parse_figures(untyped) == tuple(dataclasses.replace(figure, mentions=()) for figure in figures)
            told += any(figure.plain_caption != figure.caption for figure in figures)
    assert told > 10


# -- captions


def test_all_blocks_of_a_caption_are_kept_apart_by_one_space():
    caption = "<title>Title.</title><p>One</p>\n <p>two<list><list-item><p>three</p></list-item></list></p>"
    assert figure_with(caption).caption == "Title. One two three"


def test_inline_markup_neither_glues_nor_splits_words():
    assert figure_with("<p>a<bold>b</bold>c <italic>d</italic> <sc>e</sc>f<break/>g</p>").caption == "abc d ef g"


def test_comments_and_processing_instructions_are_no_text():
    assert figure_with("<p>ab<!-- no --><?disp-level x?>cd</p>").caption == "abcd"


def test_a_superscript_stays_in_the_caption_and_is_spoken_as_a_power():
    figure = figure_with("<p>10<sup>4</sup> m<sup>2</sup>, Ca<sup>2+</sup>, 10<sup>\u22123</sup>, CO<sub>2</sub></p>")
    assert figure.caption == "104 m2, Ca2+, 10\u22123, CO2"
    assert figure.plain_caption == "10^4 m2, Ca2+, 10^\u22123, CO2"


@pytest.mark.parametrize(
    ("markup", "spoken"),
    [
        ("10<sup><italic>4</italic></sup>, 10<sup>4.5</sup>", "10^4, 10^4.5"),
        ("<bold>10</bold><sup>\u2212\u20093</sup>, 5x10<sup>3-5</sup>", "10^\u22123, 5x10^3-5"),
        ("of 10 <sup>6</sup> cells", "of 10^6 cells"),
        ("10 <sup>18</sup>F scans", "10 18F scans"),
        ("10<sup>5 </sup>cells", "10^5 cells"),
        ("2<sup>\u2212\u0394\u0394C<sub>t</sub></sup>", "2^\u2212\u0394\u0394Ct"),
        ("x<sub>1</sub><sup>2</sup>, H<sub>2</sub><sup>18</sup>O", "x1^2, H218O"),
        ("IL-6<sup>4</sup>, 2010<sup>5</sup>", "IL-64, 20105"),
        ("10<sup>4,5</sup>, HL60<sup>3-5</sup>", "104,5, HL603-5"),
        ("5<sup>th</sup>, CD4<sup>+</sup>, p53<sup>-/-</sup>", "5th, CD4+, p53-/-"),
    ],
)
def test_a_power_is_told_from_citations_charges_and_isotopes(markup, spoken):
    figure = figure_with(f"<p>{markup}</p>")
    assert figure.plain_caption == spoken
    assert figure.caption == collapsed(re.sub("<.*?>", "", markup))
    assert sentences(f"<p>{markup} <xref rid='F1'>X</xref></p>") == [f"{spoken} X"]


CITE = '<xref ref-type="bibr" rid="R6">'


@pytest.mark.parametrize(
    "citation",
    [
        f"<sup>{CITE}6</xref>,{CITE}7</xref></sup>",
        f"<sup>[{CITE}6</xref>\u2013{CITE}9</xref>]</sup>",
        f"<sup>{CITE}6</xref>,7</sup>",
        f"{CITE}<sup>6,7</sup></xref>",
        f"{CITE}<italic><sup>6</sup></italic></xref>",
        f"{CITE} <sup>6</sup>, <sup>7</sup> </xref>",
        f"{CITE}<sup>6</sup></xref>, {CITE}<sup>7</sup></xref>",
        f"{CITE}<sup>6</sup></xref><sup>,</sup>{CITE}<sup>7</sup></xref><sup>\u2013</sup>{CITE}<sup>9</sup></xref>",
        f"<sup>{CITE}6</xref></sup>,<sup>{CITE}7</xref></sup>",
        f"<sup>5,</sup>{CITE}<sup>7</sup></xref>",
        '<sup><xref rid="R6">6</xref>,<xref rid="R7">7</xref></sup>',
        "<sup>6,7</sup>",
        "<sup>6\u20139, 12</sup>",
    ],
)
def test_superscript_citations_stay_in_the_caption_and_are_not_spoken(citation):
    text = re.sub("<.*?>", "", citation)
    figure = figure_with(f"<p>cancer{citation}, cells</p>")
    assert figure.caption == collapsed(f"cancer{text}, cells")
    assert figure.plain_caption == "cancer, cells"


def test_what_stands_beside_a_superscript_citation_stays():
    assert figure_with(f"<p>CD4<sup>+,{CITE}4</xref></sup> T</p>").plain_caption == "CD4+ T"
    assert figure_with(f"<p>Cl<sup>\u2212</sup>{CITE}<sup>4</sup></xref> in</p>").plain_caption == "Cl\u2212 in"
    assert (
        figure_with("<p>grown.<sup>1,2</sup> OR<sup>1,2</sup> cm<sup>2</sup></p>").plain_caption == "grown. OR1,2 cm2"
    )
    assert figure_with(f"<p>as in {CITE}4</xref>, {CITE}5</xref></p>").plain_caption == "as in 4, 5"
    others = '<sup><xref rid="T1">a</xref></sup>, <sup><xref ref-type="fn" rid="R2">b</xref></sup>'
    assert only_figure(f'<fn id="T1"/><fig><caption><p>p{others}</p></caption></fig>').plain_caption == "pa, b"


def test_tex_is_preferred_without_its_preamble_and_mathml_gives_its_tokens():
    tex = r"<tex-math>\documentclass{x}\usepackage{y}\begin{document}$$a_1$$\end{document}</tex-math>"
    math = "<mml:math><mml:mi>b</mml:mi> <mml:mo>=</mml:mo> <mml:mn>2</mml:mn></mml:math>"
    picture = '<inline-graphic xlink:href="x.gif"/>'
    both = f"<inline-formula><alternatives>{picture}{math}{tex}</alternatives></inline-formula>"
    assert figure_with(f"<p>({both}) ({math})</p>").caption == "($a_1$) (b=2)"


def test_dollars_inside_a_formula_do_not_end_it():
    for source, text in (
        (r"$$y=\mbox{if $x$ else} 2$$", r"$y=\mbox{if $x$ else} 2$"),
        ("$a$ and $b$", "$a$ and $b$"),
        ("as $x$ is", "$x$"),
    ):
        assert figure_with(f"<p><tex-math>{source}</tex-math></p>").caption == text


def test_fences_are_read_aloud():
    tokens = "<mml:mi>x</mml:mi><mml:mi>y</mml:mi>"
    math = (
        f"<mml:math><mml:mi>f</mml:mi><mml:mfenced>{tokens}</mml:mfenced><mml:mfenced open='['>{tokens}</mml:mfenced>"
    )
    figure = figure_with(f"<p>{math}</mml:math></p>")
    assert (figure.caption, figure.plain_caption) == ("fxyxy", "f(x,y)[x,y)")


def test_words_on_both_sides_of_an_inline_picture_are_two_when_read_aloud():
    figure = figure_with("<p>Gum<inline-graphic/>Pectin (<inline-graphic/>), <inline-graphic/>.</p>")
    assert figure.caption == "GumPectin (), ."
    assert training_text(figure.plain_caption) == "Gum Pectin,."


def test_two_forms_of_one_formula_are_one_formula():
    tex, math = "<tex-math>$x_1$</tex-math>", "<mml:math><mml:mi>x</mml:mi></mml:math>"
    for forms in (tex + math, math + tex, f"{math}\n{tex}"):
        for whole in (forms, f"<inline-formula>{forms}</inline-formula>"):
            assert figure_with(f"<p>{whole}</p>").caption == figure_with(f"<p>{whole}</p>").plain_caption == "$x_1$"
    assert figure_with(f"<p><inline-formula>{math}, {math}</inline-formula> {tex}</p>").caption == "x, x $x_1$"
    assert figure_with(f"<p><alternatives><tex-math/>{math}</alternatives></p>").caption == "x"


def test_the_tex_that_annotates_mathml_is_preferred():
    note = '<mml:annotation encoding="{}">\\alpha^2</mml:annotation>'
    math = "<mml:math><mml:semantics><mml:mi>a</mml:mi>{}</mml:semantics></mml:math>"
    assert figure_with(f"<p>{math.format(note.format('application/x-tex'))}</p>").caption == "$\\alpha^2$"
    assert figure_with(f"<p>{math.format(note.format('MathType-MTEF'))}</p>").caption == "a"


MINUS_11 = "<mml:mrow><mml:mo>-</mml:mo><mml:mn>11</mml:mn></mml:mrow>"
TWO_PLUS = "<mml:mrow><mml:mn>2</mml:mn><mml:mo>+</mml:mo></mml:mrow>"
A_PLUS_B = "<mml:mrow><mml:mi>a</mml:mi><mml:mo>+</mml:mo><mml:mi>b</mml:mi></mml:mrow>"


@pytest.mark.parametrize(
    ("math", "caption", "spoken"),
    [
        (f"<mml:msup><mml:mn>10</mml:mn>{MINUS_11}</mml:msup>", "10-11", "10^-11"),
        (f"<mml:msup><mml:mn>9.10</mml:mn>{MINUS_11}</mml:msup>", "9.10-11", "9.10^-11"),
        ("<mml:mn>10</mml:mn><mml:msup><mml:mrow/><mml:mn>4</mml:mn></mml:msup>", "104", "10^4"),
        ("<mml:msup><mml:mi>R</mml:mi><mml:mn>2</mml:mn></mml:msup>", "R2", "R^2"),
        (f"<mml:msup><mml:mi>e</mml:mi>{A_PLUS_B}</mml:msup>", "ea+b", "e^(a+b)"),
        ("<mml:msub><mml:mi>H</mml:mi><mml:mn>2</mml:mn></mml:msub><mml:mi>O</mml:mi>", "H2O", "H2O"),
        ("<mml:msubsup><mml:mi>x</mml:mi><mml:mi>i</mml:mi><mml:mn>2</mml:mn></mml:msubsup>", "xi2", "xi^2"),
        (f"<mml:msup><mml:mi>Ca</mml:mi>{TWO_PLUS}</mml:msup>", "Ca2+", "Ca2+"),
        ("<mml:msup><mml:mn>30</mml:mn><mml:mo>∘</mml:mo></mml:msup>", "30∘", "30∘"),
        ("<mml:msup><mml:mi/><mml:mn>13</mml:mn></mml:msup><mml:mi>C</mml:mi>", "13C", "13C"),
        (
            "<mml:mmultiscripts><mml:mi>C</mml:mi><mml:mprescripts/><mml:none/><mml:mn>14</mml:mn></mml:mmultiscripts>",
            "C14",
            "14C",
        ),
        (f"<mml:mfrac><mml:mn>1</mml:mn>{A_PLUS_B}</mml:mfrac>", "1a+b", "1/(a+b)"),
        ("<mml:msqrt><mml:mn>2</mml:mn></mml:msqrt>", "2", "√2"),
    ],
)
def test_mathml_is_its_tokens_in_the_caption_and_spoken_with_powers_and_fractions(math, caption, spoken):
    formula = f"<inline-formula><mml:math>{math}</mml:math></inline-formula>"
    figure = figure_with(f"<p>p&lt;{formula}</p>")
    assert (figure.caption, figure.plain_caption) == (f"p<{caption}", f"p<{spoken}")
    assert sentences(f"<p>p&lt;{formula} in <xref rid='F1'>X</xref></p>") == [f"p<{spoken} in X"]
    assert figure_with(f"<p><alternatives>{formula[16:-17]}</alternatives></p>").plain_caption == spoken


def test_entities_of_the_iso_sets_become_characters_and_others_are_never_expanded():
    prolog = '<!DOCTYPE article SYSTEM "jats.dtd" [<!ENTITY own "secret">]>'
    figure = parse("<fig><caption><p>&alpha;-<italic>&beta;</italic>&own;</p></caption></fig>", prolog=prolog).figures[
        0
    ]
    assert figure.caption == "α-β&own;"


def test_a_figure_without_id_label_caption_or_graphic_is_a_figure():
    assert only_figure("<fig/>") == Figure(None, None, "", (), None, False, ())


def test_an_article_keeps_its_other_figures_when_one_has_nothing():
    article = parse('<fig/><fig id="F2"><label>2</label><caption><p>Two.</p></caption></fig>')
    assert [(figure.label, figure.caption) for figure in article.figures] == [(None, ""), ("2", "Two.")]


# -- graphics


def graphics(inside: str) -> tuple[tuple[str, ...], ...]:
    return parse(f"<fig>{inside}</fig>").figures[0].graphics


def test_the_href_is_the_xlink_one_whatever_stands_before_it():
    assert graphics('<graphic id="g1" position="float" xlink:href="pone.0012255.g001"/>') == (("pone.0012255.g001",),)


def test_several_graphics_are_several_pictures_also_deeper_down():
    assert graphics('<graphic xlink:href="a"/><p><graphic xlink:href="b"/></p>') == (("a",), ("b",))


def test_alternatives_are_one_picture_with_the_thumbnail_last():
    forms = '<graphic xlink:href="a.gif" content-type="thumb"/><graphic xlink:href="a.jpg" content-type="image"/>'
    assert graphics(f"<alternatives>{forms}</alternatives>") == (("a.jpg", "a.gif"),)


@pytest.mark.parametrize(
    ("forms", "order"),
    [
        ((("a.jpg", "", "thumbnail"), ("a.tif", "", ""), ("a.png", "web", "")), ("a.tif", "a.png", "a.jpg")),
        # SciELO: the web's image is whole, what states a small size is not
        (
            (("a.jpg", "scielo-web", "scielo-20x20"), ("b.jpg", "", "scielo-267x140"), ("a.png", "scielo-web", "")),
            ("a.png", "b.jpg", "a.jpg"),
        ),
        (
            (("s.jpg", "preview", ""), ("a.gif", "", ""), ("a.eps", "print", ""), ("a.bmp", "", "")),
            ("a.bmp", "a.eps", "a.gif", "s.jpg"),
        ),
        ((("a.png", "", "2000x1500"), ("a_thumb.png", "", "")), ("a.png", "a_thumb.png")),
    ],
)
def test_alternatives_are_ranked_by_what_they_are(forms, order):
    elements = "".join(
        f'<graphic xlink:href="{name}" specific-use="{use}" content-type="{kind}"/>' for name, use, kind in forms
    )
    assert graphics(f"<alternatives>{elements}</alternatives>") == (order,)


def test_pictures_as_media_count_and_films_do_not():
    media = (
        '<media xlink:href="a.mp4" mimetype="video"/><media xlink:href="b" mimetype="image"/><media '
        'xlink:href="c.png"/>'
    )
    assert graphics(media) == (("b",), ("c.png",))


def test_graphics_of_tables_equations_and_supplements_are_not_the_figures():
    apart = "".join(
        f'<{tag}><graphic xlink:href="no"/></{tag}>' for tag in ("table-wrap", "disp-formula", "supplementary-material")
    )
    assert graphics(apart + '<p><inline-graphic xlink:href="no"/></p><graphic xlink:href="yes"/>') == (("yes",),)
    assert parse('<table-wrap><graphic xlink:href="t"/></table-wrap><p><graphic xlink:href="p"/></p>').figures == ()


def test_a_nested_figure_is_its_own_and_leaks_nothing_into_its_parent():
    inner = '<fig id="in"><label>2</label><caption><p>In.</p></caption><graphic xlink:href="in"/></fig>'
    outer, nested = parse(
        f'<fig id="out"><caption><p>Out.</p></caption><p>{inner}</p><graphic xlink:href="out"/></fig>'
    ).figures
    assert (outer.label, outer.caption, outer.graphics) == (None, "Out.", (("out",),))
    assert (nested.label, nested.caption, nested.graphics) == ("2", "In.", (("in",),))


@pytest.mark.parametrize(
    ("href", "name"), [("../../etc/passwd", "passwd"), ("C:\\x\\y.jpg", "y.jpg"), ("s3://other/b.png", "b.png")]
)
def test_a_href_can_only_mean_a_name_in_the_articles_own_folder(href, name):
    assert graphics(f'<graphic xlink:href="{href}"/>') == ((name,),)


@pytest.mark.parametrize("href", ["", "..", "a/", "."])
def test_a_href_without_a_name_is_no_picture(href):
    assert graphics(f'<graphic xlink:href="{href}"/>') == ()


# -- mentions


def test_the_sentence_goes_on_after_a_figure_inside_its_paragraph():
    body = '<p>See <xref rid="F1">Figure 1</xref> here. <fig id="F1"><caption><p>Legend.</p></caption></fig> More.</p>'
    assert only_figure(body).mentions == (Mention("See Figure 1 here.", True),)
    split = '<p>As <fig id="F1"><caption><p>Legend.</p></caption></fig> in <xref rid="F1">Figure 1</xref>. More.</p>'
    assert only_figure(split).mentions == (Mention("As in Figure 1.", True),)


def test_an_xref_without_text_reads_as_the_figures_label():
    assert sentences('<p>See <xref ref-type="fig" rid="F1"/> here. More.</p>') == ["See Figure 1 here."]


@pytest.mark.parametrize("floating", ["table-wrap", "supplementary-material", "disp-formula", "boxed-text"])
def test_what_floats_in_the_paragraph_is_left_out_of_the_sentence(floating):
    body = f'<p>Cells <{floating}><label>No.</label></{floating}> grow (<xref rid="F1">Fig. 1</xref>). So.</p>'
    assert sentences(body) == ["Cells grow (Fig. 1)."]


def test_a_list_ends_the_sentence_and_its_items_have_their_own():
    body = (
        '<p>First <xref rid="F1">a</xref> of<list><list-item><p>in <xref rid="F1">b</xref></p></list-item></list>'
        'then <xref rid="F1">c</xref>.</p>'
    )
    assert sentences(body) == ["First a of", "then c.", "in b"]


def test_a_sentence_is_a_mention_once_with_all_its_panels():
    body = (
        '<p>As <xref rid="F1">Fig. 6A</xref> and <xref rid="F1">6E</xref> show. Then <xref rid="F1">Fig. 6</xref>.</p>'
    )
    assert sentences(body) == ["As Fig. 6A and 6E show.", "Then Fig. 6."]


def test_an_xref_that_names_several_figures_is_a_mention_of_each():
    article = parse('<fig id="A"/><fig id="B"/><p>Both (<xref rid="A B">Figs. 1, 2</xref>).</p>')
    assert [figure.mentions for figure in article.figures] == [(Mention("Both (Figs. 1, 2).", True),)] * 2


def test_a_figure_does_not_mention_itself_but_another_ones_caption_does():
    article = parse(
        '<fig id="A"><caption><p>As <xref rid="A">1</xref>, <xref rid="B">2</xref>.</p></caption></fig><fig id="B"/>'
    )
    assert [len(figure.mentions) for figure in article.figures] == [0, 1]


def test_only_bodies_count_as_body():
    front = '<front><article-meta><abstract><p>In <xref rid="F1">1</xref>.</p></abstract></article-meta></front>'
    assert only_figure('<fig id="F1"/>', front).mentions == (Mention("In 1.", False),)


@pytest.mark.parametrize(
    "sentence",
    [
        "It was as in Fig. 2 and Figs. 3 to 5 of Smith et al. (2010) at X.",
        "Growth, e.g. Rapid growth, i.e. Doubling at 37.5 °C or 0.05 mM, see X.",
        "C. elegans was given by J. R. Smith and H. Jones vs. Control in X.",
        "In No. 5 of ref. 12 (cf. Table 2) and approx. 3 cells, X.",
        "See Dr. Müller in X?",
        'They wrote "this is X."',
        "By Western blot analysis(Fig. 5 and X).",
    ],
)
def test_stops_that_end_no_sentence_do_not_cut_it(sentence):
    text = f"Before it. {sentence} The next one. 5 more."
    assert sentences("<p>" + text.replace("X", '<xref rid="F1">X</xref>') + "</p>") == [sentence]


def test_sentences_that_end_in_an_initial_or_al_are_told_by_what_follows():
    assert sentences('<p>We gave vitamin C. The <xref rid="F1">X</xref> grew.</p>') == ["The X grew."]
    assert sentences('<p>As said by Smith et al. However, <xref rid="F1">X</xref> grew.</p>') == ["However, X grew."]


def test_a_citation_in_parentheses_after_the_stop_belongs_to_the_sentence_before():
    assert sentences('<p>One. Cells grew. (<xref rid="F1">Fig. 1</xref>). Two.</p>') == ["Cells grew. (Fig. 1)."]


def test_superscript_citations_do_not_hide_the_end_of_a_sentence():
    citation = '<xref ref-type="bibr" rid="R"><sup>4</sup></xref>'
    assert sentences(f'<p>Known.{citation} New in <xref rid="F1">X</xref>.{citation} Then.</p>') == ["New in X."]


# -- facts and licences


def with_permissions(permissions: str) -> Article:
    return parse("", f"<front><article-meta><permissions>{permissions}</permissions></article-meta></front>")


@pytest.mark.parametrize(
    ("permissions", "code", "source"),
    [
        (
            '<license xlink:href="https://creativecommons.org/licenses/by-nc-nd/4.0/"/>',
            "CC BY-NC-ND",
            "license/@xlink:href",
        ),
        ("<license><license-p>Under CC BY\u2011NC\u2011ND 4.0.</license-p></license>", "CC BY-NC-ND", "license-p"),
        ("<license><license-p>Under CC BY \u2013 NC.</license-p></license>", "CC BY-NC", "license-p"),
        (
            '<license xlink:href="http://creativecommons.org/licenses/by-nd-nc/3.0"/>',
            "CC BY-NC-ND",
            "license/@xlink:href",
        ),
        ('<license xlink:href="http://creativecommons.org/publicdomain/zero/1.0/"/>', "CC0", "license/@xlink:href"),
        (
            '<license><a:license_ref xmlns:a="http://www.niso.org/schemas/ali/1.0/">'
            "http://creativecommons.org/licenses/by-sa/4.0/</a:license_ref></license>",
            "CC BY-SA",
            "ali:license_ref",
        ),
        (
            '<license><license-p>See <ext-link xlink:href="http://creativecommons.org/licenses/by/2.0">this</ext-link>'
            "</license-p></license>",
            "CC BY",
            "license-p/ext-link",
        ),
        (
            "<license><license-p>Under the Creative Commons Attribution Non-Commercial License.</license-p></license>",
            "CC BY-NC",
            "license-p",
        ),
        ('<license license-type="creativeCommonsBy-nc"/>', "CC BY-NC", "license/@license-type"),
        (
            "<copyright-statement>© 2020 A. Distributed under CC BY 4.0.</copyright-statement>",
            "CC BY",
            "copyright-statement",
        ),
        ("<copyright-statement>© 2020 Elsevier</copyright-statement>", None, None),
        ("<license><license-p>Open access.</license-p></license>", None, None),
        (
            '<license xlink:href="http://creativecommons.org/licenses/by/4.0"><license-p>Licensed under a Creative '
            "Commons"
            " Attribution-NonCommercial-NoDerivatives 4.0 International License</license-p></license>",
            "CC BY-NC-ND",
            "license-p",
        ),
        (
            '<license xlink:href="http://creativecommons.org/licenses/by/4.0/"><license-p>Creative Commons '
            "Attribution. The"
            " Creative Commons Public Domain Dedication waiver applies to the data.</license-p></license>",
            "CC BY",
            "license/@xlink:href",
        ),
        # Neither is narrower: nobody can tell.
        (
            '<license xlink:href="http://creativecommons.org/licenses/by-sa/4.0/"><license-p>Under CC '
            "BY-NC.</license-p>"
            "</license>",
            "unknown",
            "license-p",
        ),
        (
            '<license xlink:href="http://creativecommons.org/licenses/by-nd/4.0/"><license-p>Creative Commons '
            "Attribution"
            "-NonCommercial license.</license-p></license>",
            "unknown",
            "license-p",
        ),
        (
            "<license><license-p>CC BY-SA, http://creativecommons.org/licenses/by-nc/4.0/.</license-p></license>",
            "unknown",
            "license-p",
        ),
        (
            '<license xlink:href="http://creativecommons.org/licenses/by-nc-sa/4.0/"><license-p>Under CC '
            "BY-SA.</license-p>"
            "</license>",
            "CC BY-NC-SA",
            "license/@xlink:href",
        ),
        (
            '<license xlink:href="http://creativecommons.org/publicdomain/zero/1.0/"><license-p>Under CC '
            "BY-NC.</license-p>"
            "</license>",
            "CC BY-NC",
            "license-p",
        ),
        # Both uses are allowed.
        *(
            (
                f"<license><license-p>The Creative Commons Attribution License permits {uses} "
                "use.</license-p></license>",
                "CC BY",
                "license-p",
            )
            for uses in (
                "commercial and noncommercial",
                "non-commercial or commercial",
                "commercial and/or non commercial",
                "use for commercial as well as for noncommercial",
                "both commercial purposes and non-commercial",
            )
        ),
        # Commercial use is forbidden in other words.
        *(
            (
                f"<license><license-p>Under the Creative Commons Attribution License, {words}.</license-p></license>",
                "CC BY-NC",
                "license-p",
            )
            for words in ("no commercial use", "not permitted for commercial use", "commercial use is not permitted")
        ),
    ],
)
def test_the_licence_is_found_where_it_stands_and_the_narrower_one_holds(permissions, code, source):
    article = with_permissions(permissions)
    assert (article.license, article.license_source) == (code, source)


def test_a_licence_without_permissions_around_it_counts_as_nlm_2_has_it():
    by = '<license xlink:href="http://creativecommons.org/licenses/by/2.0/"><p>Open.</p></license>'
    meta = "<front><article-meta><copyright-statement>© 2008 Doe</copyright-statement>{}</article-meta></front>"
    assert parse("", meta.format(by)).license == "CC BY"
    assert parse("", meta.format("")).license is None
    by_nc = by.replace("/by/", "/by-nc/")
    assert parse("", meta.format(f"<permissions>{by_nc}</permissions>{by}")).license == "CC BY-NC"
    named = "<copyright-statement>Distributed under CC BY-SA 4.0.</copyright-statement>"
    article = parse("", f"<front><article-meta>{named}</article-meta></front>")
    assert (article.license, article.license_source) == ("CC BY-SA", "copyright-statement")


def test_a_figures_own_permissions_override_the_articles():
    by_nc = '<license xlink:href="http://creativecommons.org/licenses/by-nc/4.0/"/>'
    own = only_figure(f"<fig><permissions>{by_nc}</permissions></fig>")
    assert (own.license, own.adapted) == ("CC BY-NC", False)
    at_graphic = only_figure(f'<fig><graphic xlink:href="a"><permissions>{by_nc}</permissions></graphic></fig>')
    assert (at_graphic.license, at_graphic.graphics) == ("CC BY-NC", (("a",),))
    theirs = only_figure("<fig><permissions><copyright-holder>Elsevier</copyright-holder></permissions></fig>")
    assert (theirs.license, theirs.adapted) == ("unknown", True)


@pytest.mark.parametrize(
    ("caption", "adapted"),
    [
        ("Cells. Adapted from Doe et al. [3].", True),
        ("(Reproduced with permission from ref. 12.)", True),
        ("Modified after Roe 1999.", True),
        ("Image courtesy of NASA.", True),
        ("A heart, modified from [2].", True),
        ("Modified from Roe and Doe, ref. 2.", True),
        ("Pictures taken from Doe et al.", True),
        ("Data obtained from Roe and Doe [7].", True),
        ("The drawing was taken from ref. 12.", True),
        ("Source: World Health Organization [25].", True),
        ("Image source: NASA.", True),
        ("Source: the report at https://who.int.", True),
        ("A heart (courtesy Dr. J. Doe).", True),
        ("Photo courtesy: J. Doe.", True),
        ("Photo credit: NASA.", True),
        ("Images taken from Wikimedia Commons.", True),
        ("Photos kindly provided by Dr. Roe.", True),
        ("A heart, © 2010 Elsevier.", True),
        ("Permission was obtained from the publisher.", True),
        ("Image from [3].", True),
        ("© The Authors 2019.", False),
        ("Edited in Adobe© Photoshop.", False),
        ("Portrait, included with permission.", True),
        ("Used with kind permission.", True),
        ("A protocol modified from the original.", False),
        ("Samples taken from mice as in Doe et al.", False),
        ("Cells obtained from Sigma.", False),
        ("Light source: a laser of 405 nm.", False),
        ("Source: own work, 2019.", False),
        ("Source: authors.", False),
        ("Photo credit: an author.", False),
        ("Images source: study authors.", False),
        ("A heart. Credit: the authors.", False),
        ("A heart (after washing).", False),
        ("Risks (after Roe et al. 2011).", True),
        ("Used by permission of Nature.", True),
        ("A heart. Credit: NIH.", True),
        ("Map source: OpenStreetMap.", True),
        ("Source [25].", True),
        ("Cells adapted to heat; the medium was modified.", False),
        ("Photographs taken from rice fields in 2016.", False),
        ("(A) Liver. (B) Kidney. (C) Lung.", False),
        ("(A, B) Rainfall in 2009 and 2010, (C) 2011.", False),
        ("(a) 2009; (b) 2010; (c) 2011.", False),
        ("A) Liver. B) Kidney. (C) Lung.", False),
        ("A heart (arrow), (c) Elsevier.", True),
        ("A heart, (C) 2010 Elsevier.", True),
        ("(A) Liver. (B) Kidney. (C) Lung. © 2010 Elsevier.", True),
    ],
)
def test_figures_taken_over_from_elsewhere_are_marked(caption, adapted):
    assert figure_with(f"<p>{caption}</p>").adapted is adapted
    assert only_figure(f"<fig><attrib>{caption}</attrib></fig>").adapted is adapted


def test_the_year_is_that_of_the_first_publication():
    dates = "".join(
        f'<pub-date pub-type="{kind}"><year>{year}</year></pub-date>'
        for kind, year in (("pmc-release", 2009), ("epreprint", 2008), ("ppub", 2012), ("epub", 2011))
    )
    assert parse("", f"<front><article-meta>{dates}</article-meta></front>").year == 2011


@pytest.mark.parametrize(
    ("meta", "preprint"),
    [
        (
            '<related-article related-article-type="preprint" ext-link-type="doi" xlink:href="10.1101/486050"/>',
            "10.1101/486050",
        ),
        (
            '<pub-history><event event-type="preprint-publication"><self-uri content-type="preprint" '
            'xlink:href="https://doi.org/10.1101/2024.05.08.593085v2"/></event></pub-history>',
            "10.1101/2024.05.08.593085",
        ),
        (
            '<pub-history><event event-type="preprint"><article-id pub-id-type="doi">10.1101/486050</article-id>'
            "</event></pub-history>",
            "10.1101/486050",
        ),
        ('<related-article related-article-type="commentary" xlink:href="10.1101/486050"/>', None),
        (
            '<pub-history><event event-type="received"><self-uri xlink:href="10.1101/486050"/></event></pub-history>',
            None,
        ),
    ],
)
def test_the_preprint_that_an_article_names_as_its_own_is_told(meta, preprint):
    assert parse("", f"<front><article-meta>{meta}</article-meta></front>").preprint == preprint


def test_an_article_inside_an_answer_of_oai_pmh_is_found():
    fig = "<body><fig id='F1'><caption><p>Text.</p></caption></fig></body>"
    jats = f'<article xmlns="https://jats.nlm.nih.gov/ns/archiving/1.3/" article-type="review-article">{fig}</article>'
    article = parse_article(
        f'<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><record>{jats}</record></OAI-PMH>'.encode()
    )
    assert (article.article_type, article.figures[0].caption) == ("review-article", "Text.")
