"""The examples in the docstrings run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["filters", "folding", "identifiers", "index", "outputs", "words"])
def test_the_examples_of_a_module_give_what_they_say(name):
    result = doctest.testmod(importlib.import_module(f"biomedclip_ray.search.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
