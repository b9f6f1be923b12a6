"""Weights that others bring: a pickle is read for its tensors alone, and runs nothing."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from biomedclip_ray.clip.bundle import PROVENANCE, WEIGHTS, BundleError
from biomedclip_ray.clip.encoder import Encoder
from tests.ray.test_serve import drawn, make

PICKLED = "open_clip_pytorch_model.bin"


class Runs:
    """Unpickled by a trusting reader, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundle, _, _ = make(tmp_path, 0, *drawn())
    return Path(bundle.place.at("bundle").uri)


def test_pickled_weights_are_read_as_tensors_and_give_the_same_vectors(folder: Path) -> None:
    expected = Encoder.load(folder).encode_text(["cells"])
    torch.save(load_file(folder / WEIGHTS), folder / PICKLED)
    (folder / WEIGHTS).unlink()
    (folder / PROVENANCE).unlink()
    assert np.abs(Encoder.load(folder).encode_text(["cells"]) - expected).max() < 1e-6


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    torch.save({**load_file(folder / WEIGHTS), "more": Runs(mark)}, folder / PICKLED)
    (folder / WEIGHTS).unlink()
    (folder / PROVENANCE).unlink()
    with pytest.raises(BundleError, match=PICKLED):
        Encoder.load(folder)
    assert not mark.exists()
    with pytest.raises(AssertionError):  # the trap works: who trusts the file runs it
        torch.load(folder / PICKLED, weights_only=False)
        assert not mark.exists()
