"""Judging articles by year, journal and type."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from biomedclip_ray.config import ConfigError, IngestSelect, parse
from biomedclip_ray.jats.article import parse_article
from biomedclip_ray.pmc.ingest import rejection
from biomedclip_ray.schema import Reason

ARTICLE = parse_article(
    b"""<article article-type="case-report"><front>
    <journal-meta><journal-title-group><journal-title>The  Journal of
      Sounds</journal-title></journal-title-group></journal-meta>
    <article-meta><pub-date pub-type="epub"><year>2014</year></pub-date><pub-date pub-type="ppub"><year>2015</year></pub-date>
    </article-meta></front></article>"""
)
NAMELESS = dataclasses.replace(ARTICLE, year=None, journal=None, article_type=None)


def _judged(**select: Any) -> tuple[Reason, str] | None:
    return rejection(ARTICLE, parse({"root": "r", "ingest": {"select": select}}, "test").ingest.select)


def test_nothing_is_left_out_unless_asked() -> None:
    assert rejection(ARTICLE, IngestSelect()) is rejection(NAMELESS, IngestSelect()) is None


@pytest.mark.parametrize("years", [[2014, 2014], [2000, 2014], [2014, 2030], [2014, None], [None, 2014], [None, None]])
def test_both_ends_of_the_years_are_inside_and_the_earliest_date_counts(years: list[int | None]) -> None:
    assert _judged(years=years) is None


@pytest.mark.parametrize("years", [[2015, 2020], [2000, 2013], [2015, None], [None, 2013]])
def test_another_year_has_its_reason(years: list[int | None]) -> None:
    assert _judged(years=years) == (Reason.YEAR, "2014")


def test_a_journal_is_named_whole_in_any_case() -> None:
    assert _judged(journals=["Nature", "the journal of SOUNDS"]) is None
    assert _judged(journals=["Sounds"]) == (Reason.JOURNAL, "The Journal of Sounds")
    assert _judged(journals=["The Journal of Sounds and Words"]) == (Reason.JOURNAL, "The Journal of Sounds")


def test_a_type_is_one_of_those_named() -> None:
    assert _judged(article_types=["research-article", "case-report"]) is None
    assert _judged(article_types=["research-article"]) == (Reason.ARTICLE_TYPE, "case-report")


@pytest.mark.parametrize("select", [{"years": (2000, None)}, {"journals": ("x",)}, {"article_types": ("case-report",)}])
def test_an_article_that_does_not_say_is_left_out(select: dict[str, Any]) -> None:
    found = rejection(NAMELESS, IngestSelect(**select))
    assert found is not None
    assert found[1] == "unknown"


@pytest.mark.parametrize(
    "select, words",
    [
        ({"years": [2020, 2010]}, "ingest.select.years=[2020, 2010]: must be [first, last], and 2020 is after 2010"),
        ({"years": ["soon", 2010]}, "ingest.select.years.0='soon'"),
        ({"years": [2010]}, "ingest.select.years"),
        ({"journals": [" "]}, "ingest.select.journals"),
        (
            {"article_types": ["reserch-article"]},
            "'reserch-article' is no article type; did you mean research-article?",
        ),
        ({"article_types": ["review"]}, "known: abstract,"),
        ({"journal": ["x"]}, "did you mean ingest.select.journals?"),
    ],
)
def test_a_wrong_selection_is_refused_by_its_key(select: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"root": "r", "ingest": {"select": select}}, "run.yaml")
    assert words in str(caught.value)
    assert "ingest.select." in str(caught.value)
