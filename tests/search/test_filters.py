"""Filters as the server reads them: any value is a question or a ValueError, never an error of the search."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biomedclip_ray.search import build
from biomedclip_ray.search.filters import Filters
from biomedclip_ray.search.index import Index


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    rows = [
        {
            "pair_id": f"PMC{n}.1/F{f}#{panel}",
            "article_id": f"PMC{n}.1",
            "caption": "a gel",
            "journal": "O'Brien's",
            "image_vector": [1.0, n],
            "text_vector": [1.0, 0.0],
            "year": 2000 + n,
        }
        for n in range(6)
        for f in (1, 2)
        for panel in (0, 1)
    ]
    return build.from_rows(str(tmp_path_factory.mktemp("filters")), rows)


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ({"year_from": 2004}, 8),
        ({"year_to": 2000}, 4),
        ({"year_from": 99999999999}, 0),
        ({"year_to": 99999999999}, 24),
        ({"year_from": -(10**40)}, 24),
        ({"year_to": -(10**40)}, 0),
        ({"year_from": 2004, "year_to": 2003}, 0),
        ({"journals": ["O'Brien's"]}, 24),
        ({"journals": ["' OR '1'='1"]}, 0),
        ({"journals": []}, 0),
        ({"articles": ["PMC3.1"]}, 4),
        ({"articles": ["PMC3", "PMC4.1", "PMC5.9"]}, 8),
        ({"figures": ["PMC3.1/F2"]}, 2),
        ({}, 24),
    ],
)
def test_a_filter_lets_pass_what_it_says(index, filters, rows):
    chosen = Filters(**filters)
    assert index.count(chosen) == rows
    assert len(index.search([1.0, 0.5], 100, filters=chosen)) == rows
    assert len(index.text_search("gel", 100, chosen)) == rows


@pytest.mark.parametrize(
    "value",
    [
        {"year_from": True},
        {"year_from": "2020"},
        {"year_to": 20.5},
        {"year_to": float("inf")},
        {"year_to": [1]},
        {"kinds": "gel"},
        {"kinds": [1]},
        {"licenses": ["\ud800"]},
        {"unknown": 1},
        {"articles": ["a"] * 1001},
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_value_of_another_type_is_a_value_error(value):
    with pytest.raises(ValueError, match=next(iter(value))):
        Filters(**value)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet=st.characters(codec="utf-8"), max_size=20),
    number=st.integers(),
    field=st.sampled_from(["kinds", "licenses", "splits", "journals", "articles", "figures"]),
)
def test_no_value_is_an_error_of_the_search(index, text, number, field):
    filters = Filters(**{field: [text], "year_to": number})
    assert 0 <= index.count(filters) <= 24
    assert len(index.search(np.array([1.0, 2.0]), 3, filters=filters)) <= 3
    assert len(index.text_search("gel", 3, filters)) <= 3
