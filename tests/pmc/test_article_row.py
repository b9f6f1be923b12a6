"""From an article's XML and its listed files to a row with its figures: groups, tables, licences, alternatives."""

from __future__ import annotations

from typing import Any

import pytest

from biomedclip_ray.config import LICENSES
from biomedclip_ray.pmc.ingest import article_row
from biomedclip_ray.pmc.jats import Figure, parse_article
from biomedclip_ray.product import Ledger

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
    assert (first.label, first.caption, first.spoken) == ("Figure 1", "Lungs. Of 104 mice.", "Lungs. Of 10^4 mice.")
    assert (second.label, second.caption) == ("1b", "A liver.")
    assert (third.label, third.caption) == (None, "")


def test_a_figure_in_a_group_without_a_caption_has_none() -> None:
    row, ledger = _row(f"<fig-group><fig id='a'>{GRAPHIC.format('a.jpg')}</fig></fig-group>", ["a.jpg"])
    assert row["figures"] == []
    assert [drop["reason"] for drop in ledger.rows] == ["no_caption"]


# -- tables

TABLE = (
    "<p>See <xref rid='t1'>Table 1</xref>.</p><table-wrap id='t1'><label>Table 1</label><caption><p>Values.</p></caption>"
    f"<alternatives>{GRAPHIC.format('t1.jpg')}<table><tr><td>{GRAPHIC.format('icon')}</td></tr></table></alternatives>"
    "<table-wrap-foot><fn><p>As <xref rid='t1'>Table 1</xref> says.</p></fn></table-wrap-foot></table-wrap>"
    f"<table-wrap id='t2'><caption><p>Icons.</p></caption><table><tr><td>{GRAPHIC.format('icon')}</td></tr></table></table-wrap>"
)


def test_tables_are_no_figures_unless_asked_for() -> None:
    assert _figures(TABLE) == ()
    [table] = _figures(TABLE, tables=True)
    assert (table.xml_id, table.label, table.caption) == ("t1", "Table 1", "Values.")
    assert table.graphics[0][0] == "t1.jpg"
    assert [mention.sentence for mention in table.mentions] == ["See Table 1."]


def test_a_table_is_a_row_like_a_figure() -> None:
    row, _ = _row(TABLE, ["t1.jpg", "icon.gif"], tables=True)
    assert [figure["figure_id"] for figure in row["figures"]] == ["PMC1.1/t1"]


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
