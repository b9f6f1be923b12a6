"""What every test may ask for: the folder of real articles and labelled sets, where it lies beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing may be fetched; what is needed is made by the tests


def _data(name: str) -> Path:
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("BIOMEDCLIP_TEST_DATA", default)) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set BIOMEDCLIP_TEST_DATA to the folder that holds {name}/")
    return folder


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Real articles in the bucket's layout and the truth about their figures."""
    return _data("corpus")


@pytest.fixture(scope="session")
def eval_sets() -> Path:
    """Real labelled sets."""
    return _data("eval")
