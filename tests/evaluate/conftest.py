"""Small labelled sets on disk, in any layout."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

CLASSES = ["cell", "gel", "chart"]


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def pixels(label: int, seed: int) -> np.ndarray:
    """A noisy image whose colour tells its class."""
    noise = np.random.default_rng(seed).integers(0, 90, (24, 24, 3))
    noise[:, :, label] += 150
    return noise.astype(np.uint8)


@pytest.fixture
def about() -> dict[str, Any]:
    names = {"cell": ["cell"], "gel": ["gel", "blot of a gel"], "chart": ["chart"]}
    prompts = {"templates": ["a {}", "nothing but {}"], "class_names": names}
    return {"name": "tiny", "task": "classification", "classes": CLASSES, "prompts": prompts}


@pytest.fixture
def make_set(tmp_path: Path, about: dict[str, Any]) -> Callable[..., Path]:
    """Writes a set of `rows` of train and test as Parquet; keywords change dataset.json."""

    def make(name: str = "tiny", rows: int = 30, **changed: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "dataset.json").write_text(json.dumps(about | changed))
        for number, split in enumerate(("train", "test")):
            labels = [i % 3 for i in range(rows)]
            table = {
                "image": [png(pixels(c, 1000 * number + i)) for i, c in enumerate(labels)],
                "label": [CLASSES[c] for c in labels],
                "group": [f"smear{i // 2}" for i in range(rows)],
            }
            pq.write_table(pa.table(table), folder / f"{split}.parquet")
        return folder

    return make


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small CLIPs with random weights."""
    import torch

    from biomedclip_ray.clip.bundle import save_bundle
    from biomedclip_ray.clip.model import build_model
    from biomedclip_ray.clip.tokenizer import fit_tokenizer
    from biomedclip_ray.config import Model

    tokenizer = fit_tokenizer(["a cell, a gel or a chart, and nothing but a blot of a gel"] * 3, 300, 32)
    out = []
    for seed in range(2):
        torch.manual_seed(seed)
        built = build_model(Model(config="sample_64", init="random"), tokenizer)
        folder = tmp_path_factory.mktemp("clip") / f"clip{seed}"
        save_bundle(folder, built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {})
        out.append(folder)
    return out
