"""From an article's XML and its listed files to a row with its figures: groups, tables, licences, alternatives."""

from __future__ import annotations

from typing import Any

import pytest

from biomedclip_ray.config import LICENSES, Ingest
from biomedclip_ray.jats.article import Figure, parse_article
from biomedclip_ray.pmc.ingest import article_row, read_article
from biomedclip_ray.store.ledger import Ledger

GRAPHIC = '<graphic xmlns:xlink="http://www.w3.org/1999/xlink" xlink:href="{}"/>'


def _xml(body: str) -> bytes:
    return f"<article><front><article-meta/></front><body>{body}</body></article>".encode()


def _figures(body: str, tables: bool = False) -> tuple[Figure, ...]:
    return parse_article(_xml(body), tables).figures


def _row(
    body: str, names: list[str], license_code: str = "CC BY", tables: bool = False, allowed: tuple[str, ...] = LICENSES
) -> tuple[dict[str, Any], Ledger]:
    media = [{"key": f"PMC1.1/{name}", "md5": None} for name in names]
    entry = dict.fromkeys(("title", "doi", "pmid")) | {"article_id": "PMC1.1", "pmcid": "PMC1", "part": 0}
    ledger = Ledger("ingest")
    article = parse_article(_xml(body), tables)
    row = article_row(entry | {"license": license_code, "media": media}, article, frozenset(allowed), ledger)
    return row, ledger


# -- groups


def test_a_figure_takes_what_it_lacks_from_its_group() -> None:
    first, second, third = _figures(
        "<fig-group><label>Figure 1</label><caption><title>Lungs.</title><p>Of 10<sup>4</sup> mice.</p></caption>"
        f"<fig id='a'>{GRAPHIC.format('a')}</fig><fig id='b'><label>1b</label><caption><p>A liver.</p></caption>"
        f"{GRAPHIC.format('b')}</fig></fig-group><fig id='c'>{GRAPHIC.format('c')}</fig>"
    )
    assert (first.label, first.caption, first.plain_caption) == (
        "Figure 1",
        "Lungs. Of 104 mice.",
        "Lungs. Of 10^4 mice.",
    )
    assert (second.label, second.caption) == ("1b", "Lungs. Of 104 mice. A liver.")
    assert second.plain_caption == "Lungs. Of 10^4 mice. A liver."
    assert (third.label, third.caption) == (None, "")


def _captioned(text: str) -> str:
    return f"<caption><p>{text}</p></caption>"


def test_groups_in_groups_lend_their_captions_and_rights() -> None:
    [figure] = _figures(
        f"<fig-group><label>Figure 1</label>{_captioned('Mice.')}<attrib>Adapted from Doe.</attrib>"
        f"<fig-group>{_captioned('Lungs.')}<fig>{_captioned('Left.')}{GRAPHIC.format('a')}</fig></fig-group></fig-group>"
    )
    assert (figure.label, figure.caption, figure.adapted) == ("Figure 1", "Mice. Lungs. Left.", True)


def test_pictures_directly_in_a_group_are_a_figure_of_their_own() -> None:
    body = (
        f"<fig-group id='g'>{_captioned('Lungs.')}{GRAPHIC.format('a')}<fig "
        f"id='b'>{GRAPHIC.format('b')}</fig></fig-group>"
    )
    row, ledger = _row(body, ["a.jpg", "b.jpg"])
    assert [(figure["figure_id"], figure["caption"]) for figure in row["figures"]] == [
        ("PMC1.1/g", "Lungs."),
        ("PMC1.1/b", "Lungs."),
    ]
    assert [figure["media"][0]["name"] for figure in row["figures"]] == ["a", "b"]
    _, ledger = _row(body, ["b.jpg"])
    assert [(drop["id"], drop["reason"]) for drop in ledger.rows] == [("PMC1.1/g", "no_media")]


def test_who_cites_a_group_cites_its_figures_and_its_caption_cites_none_of_them() -> None:
    first, second = _figures(
        "<p>See <xref rid='g'>Figure 1</xref>.</p><fig-group><fig-group id='g'><caption><p>As in <xref "
        "rid='b'>b</xref>.</p>"
        "</caption><fig id='a'><caption><p>Like <xref rid='b'>b</xref>.</p></caption></fig><fig "
        "id='b'/></fig-group></fig-group>"
    )
    assert [mention.sentence for mention in first.mentions] == ["See Figure 1."]
    assert [mention.sentence for mention in second.mentions] == ["See Figure 1.", "Like b."]


def test_a_figure_without_a_caption_takes_the_one_of_the_nearest_figure_around_it() -> None:
    inner = f"<fig id='c'>{GRAPHIC.format('c')}</fig>"
    body = f"<fig id='a'><label>1</label>{_captioned('Mice.')}<fig id='b'>{inner}</fig></fig>"
    assert [(figure.label, figure.caption) for figure in _figures(body)] == [("1", "Mice.")] * 3
    row, ledger = _row(body, ["c.jpg"])
    assert [figure["figure_id"] for figure in row["figures"]] == ["PMC1.1/c"]
    assert [drop["reason"] for drop in ledger.rows] == ["no_graphic", "no_graphic"]


@pytest.mark.parametrize("around", ["{}", "<chem-struct>{}</chem-struct>", "<inline-formula>{}</inline-formula>"])
@pytest.mark.parametrize("place", ["caption", "label", "attrib", "permissions"])
def test_a_glyph_in_the_words_of_a_figure_is_no_picture_of_it(around: str, place: str) -> None:
    glyph = around.format(GRAPHIC.format("glyph"))
    [figure] = _figures(f"<fig><{place}><p>A {glyph} cell.</p></{place}>{GRAPHIC.format('a')}</fig>")
    assert figure.graphics == (("a",),)


def test_a_figure_in_a_group_without_a_caption_has_none() -> None:
    row, ledger = _row(f"<fig-group><fig id='a'>{GRAPHIC.format('a.jpg')}</fig></fig-group>", ["a.jpg"])
    assert row["figures"] == []
    assert [drop["reason"] for drop in ledger.rows] == ["no_caption"]


# -- tables

TABLE = (
    "<p>See <xref rid='t1'>Table 1</xref>.</p><table-wrap id='t1'><label>Table "
    "1</label><caption><p>Values.</p></caption>"
    f"<alternatives>{GRAPHIC.format('t1.jpg')}<table><tr><td>{GRAPHIC.format('icon')}</td></tr></table></alternatives>"
    "<table-wrap-foot><fn><p>As <xref rid='t1'>Table 1</xref> says.</p></fn></table-wrap-foot></table-wrap>"
    "<table-wrap "
    f"id='t2'><caption><p>Icons.</p></caption><table><tr><td>{GRAPHIC.format('icon')}</td></tr></table></table-wrap>"
)


def test_tables_are_no_figures_unless_asked_for() -> None:
    assert _figures(TABLE) == ()
    [table] = _figures(TABLE, tables=True)
    assert (table.xml_id, table.label, table.caption) == ("t1", "Table 1", "Values.")
    assert (table.graphics, table.is_table) == ((("t1.jpg",),), True)
    assert [mention.sentence for mention in table.mentions] == ["See Table 1."]


def test_a_table_is_a_row_like_a_figure_and_told_from_them() -> None:
    figure = f"<fig id='f1'>{_captioned('A liver.')}{GRAPHIC.format('f1')}</fig>"
    row, _ = _row(figure + TABLE, ["f1.jpg", "t1.jpg", "icon.gif"], tables=True)
    assert [(one["figure_id"], one["is_table"]) for one in row["figures"]] == [
        ("PMC1.1/f1", False),
        ("PMC1.1/t1", True),
    ]
    assert [media["name"] for media in row["figures"][1]["media"]] == ["t1.jpg"]


# -- licences

OWN = "<permissions><license xlink:href='{}' xmlns:xlink='http://www.w3.org/1999/xlink'/></permissions>"


@pytest.mark.parametrize(
    "permissions, expected",
    [
        ("", "CC BY"),
        (OWN.format("https://creativecommons.org/licenses/by-nc/4.0/"), "CC BY-NC"),
        ("<permissions><copyright-holder>Elsevier</copyright-holder></permissions>", "unknown"),
    ],
)
def test_a_figures_own_permissions_are_its_pairs_licence(permissions: str, expected: str) -> None:
    caption = "<caption><p>A liver.</p></caption>"
    row, _ = _row(f"<fig id='a'>{caption}{GRAPHIC.format('a.jpg')}{permissions}</fig>", ["a.jpg"])
    assert (row["license"], row["figures"][0]["license"]) == ("CC BY", expected)
    assert row["figures"][0]["adapted"] is (expected == "unknown")


@pytest.mark.parametrize(
    ("metadata", "allowed", "kept"),
    [
        ("unknown", ("CC BY", "unknown"), False),
        ("unknown", ("CC BY-NC", "unknown"), True),
        ("CC BY", ("CC BY", "unknown"), True),
        ("TDM", ("CC BY",), True),  # a manuscript that was asked for: the catalog let it pass
    ],
)
def test_a_licence_that_the_xml_alone_states_is_judged_too(metadata: str, allowed: tuple[str, ...], kept: bool) -> None:
    rights = "<permissions><license><license-p>CC BY-NC</license-p></license></permissions>"
    xml = _xml(f"<fig id='F1'>{_captioned('Lungs.')}{GRAPHIC.format('a')}</fig>")
    xml = xml.replace(b"<article-meta/>", f"<article-meta>{rights}</article-meta>".encode())
    entry = dict.fromkeys(("title", "doi", "pmid")) | {"article_id": "PMC1.1", "pmcid": "PMC1", "part": 0}
    entry |= {"license": metadata, "media": [{"key": "PMC1.1/a.jpg", "md5": None}]}
    ledger = Ledger("ingest")
    row = read_article(entry, xml, Ingest(), frozenset(allowed), ledger)
    assert (row is not None) is kept
    assert [(r["id"], r["reason"], r["detail"]) for r in ledger.rows] == (
        [] if kept else [("PMC1.1", "license", "CC BY-NC")]
    )


def test_a_figure_whose_own_licence_is_not_allowed_is_dropped_with_it() -> None:
    own = {
        "a": OWN.format("https://creativecommons.org/licenses/by-nc/4.0/"),
        "b": "",
        "c": "<permissions><copyright-holder>Elsevier</copyright-holder></permissions>",
    }
    caption = "<caption><p>A liver.</p></caption>"
    body = "".join(f"<fig id='{name}'>{caption}{GRAPHIC.format(name)}{terms}</fig>" for name, terms in own.items())
    row, ledger = _row(body, ["a.jpg", "b.jpg", "c.jpg"], allowed=("CC BY",))
    assert [(figure["figure_id"], figure["license"]) for figure in row["figures"]] == [
        ("PMC1.1/b", "CC BY"),
        ("PMC1.1/c", "unknown"),
    ]
    assert [(one["reason"], one["detail"]) for one in ledger.rows] == [("license", "CC BY-NC")]
    assert ledger.counts["figure"] == (3, 2)


# -- files


def test_alternatives_share_a_number_and_several_graphics_do_not() -> None:
    alternatives = f"<alternatives>{GRAPHIC.format('a.gif')}{GRAPHIC.format('a.tif')}</alternatives>"
    row, _ = _row(
        f"<fig id='a'><caption><p>Two.</p></caption>{alternatives}{GRAPHIC.format('b')}</fig>",
        ["a.gif", "a.tif", "b.jpg", "c.jpg"],
    )
    media = row["figures"][0]["media"]
    assert [(m["key"], m["graphic"]) for m in media] == [("PMC1.1/a.tif", 0), ("PMC1.1/a.gif", 0), ("PMC1.1/b.jpg", 1)]
    assert all(m["found"] for m in media)


def test_files_of_one_stem_are_alternatives_of_one_graphic_and_a_gif_is_the_last_resort() -> None:
    row, _ = _row(
        f"<fig id='a'>{_captioned('A liver.')}{GRAPHIC.format('my%20fig.jpg')}</fig>",
        ["my fig.gif", "my fig.tif", "my fig.jpg", "my fig.zip", "fig.jpg"],
    )
    media = row["figures"][0]["media"]
    assert [item["key"] for item in media] == ["PMC1.1/my fig.jpg", "PMC1.1/my fig.tif"]
    assert {item["graphic"] for item in media} == {0} and all(item["found"] for item in media)
    row, _ = _row(f"<fig id='a'>{_captioned('A liver.')}{GRAPHIC.format('b')}</fig>", ["b.gif", "b.bmp"])
    assert [item["key"] for item in row["figures"][0]["media"]] == ["PMC1.1/b.bmp"]
