"""What the tests of the model share: captions, a small model of our own, and a tiny BERT, all made here."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub: no test asks the network

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from biomedclip_ray.clip.bundle import save_bundle
from biomedclip_ray.clip.model import Built, build_model
from biomedclip_ray.clip.tokenizer import Tokenizer, fit_tokenizer
from biomedclip_ray.config import Model
from tests.clip.published import make_bert

CAPTIONS = [
    f"Figure {n}. {kind} of {organ} at {n % 7 + 1} mm; scale bar, {n * 5} µm, 10^{n % 4} cells, β-catenin &amp; CO2"
    for n in range(40)
    for kind in ("Micrograph", "Radiograph", "Western blot", "Bar chart")
    for organ in ("lung", "liver", "kidney", "retina")
]


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return CAPTIONS


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return fit_tokenizer(CAPTIONS, 400, 32)


@pytest.fixture(scope="session")
def sample(tokenizer: Tokenizer) -> Built:
    torch.manual_seed(0)
    return build_model(Model(config="sample_64", init="random"), tokenizer)


@pytest.fixture(scope="session")
def folder(sample: Built, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model as a bundle."""
    path = tmp_path_factory.mktemp("bundle")
    save_bundle(path, sample.model, sample.model_cfg, sample.preprocess_cfg, tokenizer, {"name": "sample"})
    return path


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (200, 90), (70, 300), (33, 47), (640, 480), (64, 65), (128, 128)]
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def bert_model_config(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a model config with open_clip's ViT and that BERT."""
    config = {
        "embed_dim": 48,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
        "text_cfg": {
            "hf_model_name": str(bert_folder),
            "hf_tokenizer_name": str(bert_folder),
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 48,
        },
    }
    path = tmp_path_factory.mktemp("configs") / "tiny_bert.json"
    path.write_text(json.dumps(config))
    return str(path)
