"""Judging article versions by their metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from biomedclip_ray.config import SourceSelect, parse
from biomedclip_ray.pmc.catalog import catalog, parse_metadata, rejection
from biomedclip_ray.run.record import Inventory
from biomedclip_ray.schema import Reason

ENTRY = {"pmcid": "PMC10", "version": 2, "key": "metadata/PMC10.2.json", "last_modified": "2026-11-12", "etag": "e"}


def _json(**changes: Any) -> bytes:
    raw = {
        "pmcid": "PMC10",
        "version": 2,
        "pmid": None,
        "doi": "10.1/x",
        "title": "T",
        "citation": "C",
        "is_manuscript": False,
        "is_historical_ocr": False,
        "is_retracted": False,
        "license_code": "CC BY",
        "xml_url": f"s3://pmc-oa-opendata/PMC10.2/PMC10.2.xml?md5={'a' * 32}",
        "media_urls": [f"s3://pmc-oa-opendata/PMC10.2/fig 1+%20ä.jpg?md5={'b' * 32}", "s3://pmc-oa-opendata/PMC10.2/x"],
    }
    return json.dumps(raw | changes).encode()


def _judged(select: SourceSelect, **changes: Any) -> Reason | None:
    return rejection(parse_metadata(_json(**changes), ENTRY), select)


def test_keys_are_taken_as_they_stand_and_md5_where_there_is_one() -> None:
    row = parse_metadata(_json(), ENTRY)
    assert (row["article_id"], row["xml_key"], row["xml_md5"]) == ("PMC10.2", "PMC10.2/PMC10.2.xml", "a" * 32)
    assert row["media"] == [{"key": "PMC10.2/fig 1+%20ä.jpg", "md5": "b" * 32}, {"key": "PMC10.2/x", "md5": None}]
    assert row["pmid"] is None


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("false", False),
        ("False", False),
        ("no", False),
        ("0", False),
        (0, False),
        (None, False),
        ("true", True),
        (1, True),
    ],
)
@pytest.mark.parametrize("flag", ["is_retracted", "is_manuscript", "is_historical_ocr"])
def test_a_flag_may_be_written_as_text(flag: str, written: object, meant: bool) -> None:
    assert parse_metadata(_json(**{flag: written}), ENTRY)[flag] is meant


@pytest.mark.parametrize(
    "changes",
    [
        {"is_retracted": "perhaps"},
        {"xml_url": "s3://pmc-oa-opendata/PMC11.1/PMC11.1.xml"},
        {"xml_url": "s3://pmc-oa-opendata/PMC10.2/../PMC11.1/x.xml"},
        {"media_urls": ["s3://pmc-oa-opendata/PMC10.21/x.jpg"]},
        {"media_urls": ["/etc/passwd"]},
        {"version": 1},
        {"version": "two"},
        {"xml_url": None},
        {"media_urls": [None]},
    ],
)
def test_metadata_that_points_elsewhere_or_has_no_form_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        parse_metadata(_json(**changes), ENTRY)


@pytest.mark.parametrize("name", ["Table\u00a0S1.docx", "a\nb.txt", "\ud83d.jpg"])
def test_a_file_whose_name_is_no_address_is_left_out_and_the_others_stay(name: str) -> None:
    url = "s3://pmc-oa-opendata/PMC10.2/"
    row = parse_metadata(_json(media_urls=[url + name, "", url + "fig.jpg"]), ENTRY)
    assert [media["key"] for media in row["media"]] == ["PMC10.2/fig.jpg"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe"])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        parse_metadata(data, ENTRY)


def test_a_list_enters_the_fingerprint_by_what_it_says(tmp_path: Path) -> None:
    def of(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        source = {"uri": "x", "select": {"pmcids": str(tmp_path / name)}}
        return catalog.plan(
            parse({"root": "r", "source": source}, "test"), Inventory("2026-11-20T01-00Z", "e", ())
        ).fingerprint

    first = of("ids.txt", "PMC1\nPMC2\n")
    assert of("moved.txt", "2, PMC1") == first
    assert of("ids.txt", "PMC1\nPMC3\n") != first


def test_the_fingerprint_follows_the_inventory_and_not_the_place_of_the_source() -> None:
    def of(uri: str, *inventory: str) -> str:
        return catalog.plan(parse({"root": "r", "source": {"uri": uri}}, "test"), Inventory(*inventory, ())).fingerprint

    here = of("s3://pmc-oa-opendata", "2026-11-20T01-00Z", "etags")
    assert of("/a/copy", "2026-11-20T01-00Z", "etags") == here
    assert of("s3://pmc-oa-opendata", "2026-11-21T01-00Z", "etags") != here
    assert of("s3://pmc-oa-opendata", "2026-11-20T01-00Z", "other etags") != here


def test_presets_and_lists_decide_the_licence() -> None:
    commercial, everything = SourceSelect(), SourceSelect(licenses="all")
    allow = SourceSelect(licenses=("CC0", "CC BY"))
    assert [_judged(commercial, license_code=code) for code in ("CC0", "CC BY-ND", "CC BY-NC", None)] == [
        None,
        None,
        Reason.LICENSE,
        Reason.LICENSE,
    ]
    assert _judged(everything, license_code=None) is None
    assert _judged(allow, license_code="CC BY-SA") is Reason.LICENSE
    assert _judged(SourceSelect(licenses="non_commercial"), license_code="CC BY-NC-ND") is None


def test_retracted_manuscript_and_ocr_each_have_their_reason_and_switch() -> None:
    assert _judged(SourceSelect(), is_retracted=True) is Reason.RETRACTED
    assert _judged(SourceSelect(), is_manuscript=True, license_code="TDM") is Reason.MANUSCRIPT
    assert _judged(SourceSelect(), is_historical_ocr=True) is Reason.HISTORICAL_OCR
    assert _judged(SourceSelect(retracted=True), is_retracted=True) is None
    assert _judged(SourceSelect(manuscripts=True), is_manuscript=True, license_code="TDM") is None
    assert _judged(SourceSelect(historical_ocr=True), is_historical_ocr=True) is None
