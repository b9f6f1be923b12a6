"""Where a figure's label, caption and image stand elsewhere than in the fig: at graphics, in groups, in
two languages.
"""

from __future__ import annotations

import pytest

from biomedclip_ray.jats.article import Article, Figure, Mention, parse_article

NAMESPACES = 'xmlns:xlink="http://www.w3.org/1999/xlink"'


def figures(body: str, language: str = "en") -> tuple[Figure, ...]:
    return article(body, language).figures


def article(body: str, language: str = "en") -> Article:
    return parse_article(f'<article {NAMESPACES} xml:lang="{language}"><body>{body}</body></article>'.encode())


def says(figure: Figure) -> tuple[str | None, str, list[str]]:
    return figure.label, figure.caption, [forms[0] for forms in figure.graphics]


LIVER = '<graphic id="g1" xlink:href="a"><label>1</label><caption><p>Liver.</p></caption></graphic>'
LUNG = '<graphic id="g2" xlink:href="b"><label>2</label><caption><p>Lung.</p></caption></graphic>'
BARE = '<graphic xlink:href="c"/>'


# -- captions at graphics


def test_a_caption_at_the_graphic_of_a_fig_is_the_figs_own():
    (figure,) = figures(f'<fig id="F1">{LIVER}</fig>')
    assert says(figure) == ("1", "Liver.", ["a"]) and figure.xml_id == "F1"


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        (f"<label>Fig. 3</label><caption><p>Organs.</p></caption>{LIVER}", ("Fig. 3", "Organs. 1 Liver.", ["a"])),
        (f"<caption><p>Liver.</p></caption>{LIVER}", ("1", "Liver.", ["a"])),
        (f"<p><alternatives>{LIVER}{BARE}</alternatives></p>", ("1", "Liver.", ["a"])),
        (f"{LIVER}{BARE}", ("1", "Liver.", ["a", "c"])),
    ],
)
def test_it_stands_behind_the_figs_caption_and_is_said_once(inside, said):
    (figure,) = figures(f"<fig>{inside}</fig>")
    assert says(figure) == said


def test_several_captioned_graphics_of_a_fig_are_figures_that_say_what_they_belong_to():
    cites = '<p>See <xref rid="F1">Fig. 1</xref> and <xref rid="g2">b</xref>.</p>'
    first, second = figures(f'<fig id="F1"><caption><p>Organs.</p></caption>{LIVER}{LUNG}</fig>{cites}')
    assert says(first) == ("1", "Organs. Liver.", ["a"])
    assert says(second) == ("2", "Organs. Lung.", ["b"])
    assert first.mentions == second.mentions == (Mention("See Fig. 1 and b.", True),)


def test_an_image_without_a_caption_beside_them_stays_the_figs():
    assert [says(each) for each in figures(f"<fig><caption><p>Organs.</p></caption>{LIVER}{LUNG}{BARE}</fig>")] == [
        (None, "Organs.", ["c"]),
        ("1", "Organs. Liver.", ["a"]),
        ("2", "Organs. Lung.", ["b"]),
    ]


@pytest.mark.parametrize("around", ["p", "sec", "boxed-text", "p><alternatives"])
def test_a_captioned_graphic_outside_any_fig_is_a_figure(around):
    closing = "></".join(reversed(around.split("><")))
    cites = '<p>See <xref ref-type="fig" rid="g1">Fig. 1</xref>.</p>'
    (figure,) = figures(f"<{around}>{LIVER}</{closing}>{cites}")
    assert says(figure) == ("1", "Liver.", ["a"])
    assert (figure.xml_id, figure.mentions) == ("g1", (Mention("See Fig. 1.", True),))


def test_a_graphic_with_a_label_alone_is_a_figure_without_caption_and_one_with_neither_is_none():
    assert [says(each) for each in figures(f'<p><graphic xlink:href="a"><label>1</label></graphic>{BARE}</p>')] == [
        ("1", "", ["a"])
    ]


@pytest.mark.parametrize("around", ["supplementary-material", "table-wrap", "disp-formula"])
def test_captioned_graphics_of_supplements_tables_and_formulas_are_no_figures(around):
    assert figures(f"<{around}>{LIVER}</{around}>") == ()


def test_a_sentence_of_its_own_caption_does_not_mention_a_graphic():
    own = '<graphic id="g1" xlink:href="a"><caption><p>As in <xref rid="g1">1</xref>.</p></caption></graphic>'
    assert figures(f"<p>{own}</p>")[0].mentions == ()


# -- translations

PT = '<fig xml:lang="pt"><label>Figura 1</label><caption><p>Um fígado.</p></caption>{}</fig>'
EN = '<fig xml:lang="en"><label>Figure 1</label><caption><p>A liver.</p></caption>{}</fig>'


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PT.format(BARE), EN.format("")),
        (PT.format(""), EN.format(BARE)),
        (PT.format(BARE).replace(' xml:lang="pt"', ""), EN.format("").replace(' xml:lang="en"', "")),
    ],
)
def test_the_image_of_a_translated_fig_is_of_every_language(one, other):
    assert [says(each) for each in figures(f"<fig-group>{one}{other}</fig-group>")] == [
        ("Figura 1", "Um fígado.", ["c"]),
        ("Figure 1", "A liver.", ["c"]),
    ]


def test_the_licence_of_the_image_goes_with_it():
    permissions = "<permissions><license><license-p>CC BY-NC</license-p></license></permissions>"
    _, english = figures(f"<fig-group>{PT.format(BARE + permissions)}{EN.format('')}</fig-group>")
    assert english.license == "CC BY-NC"


@pytest.mark.parametrize(
    "other",
    [
        EN.format("").replace("Figure 1", "Figure 2").replace(' xml:lang="en"', ""),
        EN.format("").replace(' xml:lang="en"', ' xml:lang="pt"').replace("Figure 1", "Figure 2"),
        EN.format("").replace("<label>Figure 1</label>", "").replace(' xml:lang="en"', ""),
    ],
)
def test_another_fig_of_the_group_takes_no_image(other):
    assert [len(each.graphics) for each in figures(f"<fig-group>{PT.format(BARE)}{other}</fig-group>")] == [1, 0]


# -- two languages of one caption


@pytest.mark.parametrize(
    "captions",
    [
        '<caption xml:lang="pt"><p>Um fígado.</p></caption><caption xml:lang="en-GB"><p>A liver.</p></caption>',
        '<caption><title xml:lang="en">A liver.</title><title xml:lang="pt">Um fígado.</title></caption>',
        '<caption><p xml:lang="es">Un hígado.</p><p xml:lang="pt">Um fígado.</p><p xml:lang="en">A '
        "liver.</p></caption>",
    ],
)
def test_of_several_languages_the_plain_caption_is_the_english_and_the_caption_is_all(captions):
    (figure,) = figures(f"<fig>{captions}</fig>", "pt")
    assert figure.plain_caption == "A liver."
    assert "A liver." in figure.caption and "Um fígado." in figure.caption


def test_without_english_it_is_the_first_and_unmarked_paragraphs_are_of_the_articles():
    two = '<caption><p>Um fígado.</p><p xml:lang="es">Un hígado.</p></caption>'
    assert figures(f"<fig>{two}</fig>", "pt")[0].plain_caption == "Um fígado."
    assert (
        figures(f"<fig>{two}</fig>", "en")[0].plain_caption == "Um fígado."
    )  # what "en" says of itself, rightly or not
    one = '<caption xml:lang="es"><p>Un hígado.</p><p xml:lang="es">Un pulmón.</p></caption>'
    assert figures(f"<fig>{one}</fig>")[0].plain_caption == "Un hígado. Un pulmón."


# -- what is not shown


@pytest.mark.parametrize(("own", "found"), [("", ["a"]), ('<graphic xlink:href="b"/>', ["b"])])
def test_the_image_of_a_group_is_that_of_its_figs_where_none_has_one(own, found):
    said = [
        f'<fig xml:lang="{code}"><label>{n}</label><caption><p>{text}</p></caption>{own}</fig>'
        for code, n, text in (("es", "Figura 1", "Un hígado."), ("en", "Figure 1", "A liver."))
    ]
    group = f'<fig-group><caption><p>Organs.</p></caption><graphic xlink:href="a"/>{"".join(said)}</fig-group>'
    assert [says(each) for each in figures(group)[-2:]] == [
        ("Figura 1", "Organs. Un hígado.", found),
        ("Figure 1", "Organs. A liver.", found),
    ]
    assert len(figures(group)) == (3 if own else 2)


@pytest.mark.parametrize(
    "mark",
    [
        'specific-use="print"',
        'specific-use="print version"',
        'content-type="print-only"',
        'style="hidden"',
        'style="display:none"',
    ],
)
def test_a_part_of_a_caption_that_is_not_shown_is_no_text(mark):
    caption = (
        f"<caption><title {mark}>Plate.</title><p>A <bold {mark}>print</bold> liver.</p><p {mark}>p. 7</p></caption>"
    )
    (figure,) = figures(f"<fig>{caption}{BARE}</fig>")
    assert (figure.caption, figure.plain_caption) == ("A liver.", "A liver.")
    (figure,) = figures(f"<fig><caption><p {mark}>All that it says.</p></caption>{BARE}</fig>")
    assert figure.caption == "All that it says."


@pytest.mark.parametrize("mark", ["print", "print-only", "not-for-display", "hidden"])
def test_a_group_caption_that_is_not_shown_is_not_put_before_captions(mark):
    group = f'<caption specific-use="{mark}"><p>Continued on page 7.</p></caption>'
    (figure,) = figures(f"<fig-group>{group}<fig><caption><p>A liver.</p></caption></fig></fig-group>")
    assert figure.caption == figure.plain_caption == "A liver."


def test_a_caption_for_the_web_or_for_both_is_shown_and_of_two_own_ones_the_shown():
    for mark in ("web", "online print", "web-only"):
        group = f'<caption specific-use="{mark}"><p>Organs.</p></caption>'
        (figure,) = figures(f"<fig-group>{group}<fig><caption><p>A liver.</p></caption></fig></fig-group>")
        assert figure.caption == "Organs. A liver."
    two = '<caption specific-use="print"><p>See page 7.</p></caption><caption><p>A liver.</p></caption>'
    assert figures(f"<fig>{two}</fig>")[0].caption == "A liver."
    assert figures('<fig><caption specific-use="print"><p>A liver.</p></caption></fig>')[0].caption == "A liver."


# -- lists that the XML letters


@pytest.mark.parametrize(
    ("kind", "letters"), [("alpha-lower", "ab"), ("alpha-upper", "AB"), ("roman-lower", ("i", "ii"))]
)
def test_the_letters_of_a_list_stand_in_the_plain_caption_alone(kind, letters):
    items = "<list-item><p>Liver.</p></list-item><list-item><p>Kidney.</p></list-item>"
    group = f'<caption><title>Organs.</title><list list-type="{kind}">{items}</list></caption>'
    for figure in figures(f"<fig-group>{group}<fig/><fig/></fig-group>"):
        assert figure.caption == "Organs. Liver. Kidney."
        assert figure.plain_caption == f"Organs. ({letters[0]}) Liver. ({letters[1]}) Kidney."


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        (
            "alpha-lower",
            "<list-item><label>a.</label><p>Liver.</p></list-item><list-item><label>b.</label></list-item>",
        ),
        ("alpha-upper", "<list-item><p>(A) Liver.</p></list-item><list-item><p>B: Kidney.</p></list-item>"),
        ("bullet", "<list-item><p>Liver.</p></list-item><list-item><p>Kidney.</p></list-item>"),
        ("alpha-lower", "<list-item><p>Liver.</p></list-item>"),
    ],
)
def test_a_list_that_has_its_letters_or_none_is_left_as_it_is(kind, items):
    (figure,) = figures(f'<fig><caption><list list-type="{kind}">{items}</list></caption></fig>')
    assert figure.plain_caption == figure.caption


# -- superscripts before a word


CITE = '<xref ref-type="bibr" rid="R6">'


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("with <sup>13</sup>C and <sup>15</sup>N", "with 13C and 15N"),
        ("ratios of <sup>206, 207, 208</sup>Pb", "ratios of 206, 207, 208Pb"),
        ("ratios of <sup>206,207</sup><italic>Pb</italic>", "ratios of 206,207Pb"),
        ("the chair <sup>2,4</sup>A and (<sup>1,4</sup>B)", "the chair 2,4A and (1,4B)"),
        (f"labelled <sup>{CITE}13</xref></sup>C-glucose", "labelled 13C-glucose"),
        (f"labelled {CITE}<sup>13,14</sup></xref>C-glucose", "labelled 13,14C-glucose"),
        ("traces,<sup>86,87</sup>Sr too", "traces,86,87Sr too"),
    ],
)
def test_a_superscript_before_an_element_or_a_letter_is_no_citation(markup, plain):
    assert figures(f"<fig><caption><p>{markup}</p></caption></fig>")[0].plain_caption == plain


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        (f"of lead<sup>{CITE}6</xref></sup> Pb", "of lead Pb"),
        ("of lead.<sup>6,7</sup>The next", "of lead.The next"),
        (f"of lead <sup>{CITE}6</xref>,{CITE}7</xref></sup> and", "of lead and"),
        (f"of lead<sup>{CITE}6</xref></sup>and", "of leadand"),
    ],
)
def test_a_superscript_at_the_end_of_a_word_still_is_one(markup, plain):
    assert figures(f"<fig><caption><p>{markup}</p></caption></fig>")[0].plain_caption == plain
