"""What the benchmarks of training share: real images and captions, products made of them, and towers built from configs
alone.

An image goes with whatever caption comes next: the corpus has images for some of its figures and captions for all, and
no pace depends on which belongs to which. `real_pairs` are the ones that belong together.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from transformers import BertConfig

from biomedclip_ray.clip.model import Built, build_model
from biomedclip_ray.clip.tokenizer import Tokenizer
from biomedclip_ray.config import Model, Train, parse
from biomedclip_ray.figures.captions import training_text
from biomedclip_ray.figures.preprocess import preprocess
from biomedclip_ray.jats.article import parse_figures
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.pmc.ingest import ingest
from biomedclip_ray.run.parts import in_process
from biomedclip_ray.schema import CORPUS, LEDGER, PAIRS
from biomedclip_ray.sources.inventory import resolve_inventory
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.parquet import conform
from biomedclip_ray.store.product import Product
from biomedclip_ray.train.step import Learner

sys.path.insert(0, str(Path(__file__).parent))
from jats import real_articles

Pair = tuple[bytes, str]

VOCABULARY = 30522
"""Words that BERT's own tokenizer knows; one fitted on the captions stays below."""
PARTS = 8


def verdict(ratios: dict[str, float], bounds: dict[str, float]) -> int:
    """Print a line for each ratio; the exit code: 1 where one is below its bound."""
    for name, ratio in ratios.items():
        print(f"{name} ratio={ratio:.3f}  bound {bounds[name]:.2f}", flush=True)
    return int(any(ratio < bounds[name] for name, ratio in ratios.items()))


def real_pairs(data: Path) -> list[Pair]:
    """(JPEG, text) of every figure in the corpus' bucket that has an image, through the stages themselves: short side
    384.
    """

    with tempfile.TemporaryDirectory(prefix="biomedclip-bench-") as root:
        source = {"uri": str(data / "corpus" / "bucket"), "select": {"licenses": "all"}}
        config = parse({"root": root, "source": source, "preprocess": {"short_side": 384}}, "benchmark")
        versions = catalog.run(config, resolve_inventory(config), runner=in_process).product
        articles = ingest.run(config, versions, runner=in_process).product
        pairs = preprocess.run(config, articles, runner=in_process).product
        return [(row["image"], row["text"]) for table in pairs.scan(["image", "text"]) for row in table.to_pylist()]


def real_captions(data: Path) -> list[str]:
    """The training text of every figure in the corpus' full articles."""
    figures = (figure for xml in real_articles(data) for figure in parse_figures(xml))
    texts = (training_text(figure.caption, figure.label) for figure in figures)
    return [text for text in texts if text]


def products(rows: list[Pair], root: str) -> tuple[Product, Product]:
    """Finished pairs and corpus in parts, everything kept and in the train split."""
    pairs = Product.plan(root, "preprocess", 1, {}, [])
    corpus = Product.plan(root, "curate", 1, {}, [pairs])
    for product, schema in ((pairs, PAIRS), (corpus, CORPUS)):
        with attempt(product, PARTS) as current:
            for part in range(PARTS):
                chosen = [
                    {"pair_id": f"PMC{n}.1/F1#0", "image": image, "text": text, "split": "train", "kept": True}
                    for n, (image, text) in list(enumerate(rows))[part::PARTS]
                ]
                table = conform(pa.Table.from_pylist(chosen, schema=schema), schema)
                current.write_part(part, table, LEDGER.empty_table(), {"pair": (len(chosen), len(chosen))})
            current.finish_parts(0.0)
    return pairs, corpus


class Size(NamedTuple):
    """A CLIP of two towers, its context in tokens and the pairs of a batch."""

    vision: dict[str, Any]
    bert: dict[str, Any]
    embed_dim: int
    context: int
    batch: int


def bert(width: int, depth: int, **changes: Any) -> dict[str, Any]:
    """A BertConfig."""
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        **changes,
    }


def timm_vit(size: str) -> dict[str, Any]:
    """A ViT of 224 px and patches of 16, as BiomedCLIP's."""
    name = f"vit_{size}_patch16_224"
    return {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": 224}


def build(vision: dict[str, Any], bert: dict[str, Any], embed_dim: int, tokenizer: Tokenizer) -> Built:
    """A CLIP of that image tower (open_clip's vision_cfg) and a BERT of that BertConfig, at random
    weights of seed 0.
    """
    with tempfile.TemporaryDirectory(prefix="biomedclip-bench-") as name:
        folder = Path(name)
        BertConfig(**bert).save_pretrained(folder / "bert")
        text = {
            "hf_model_name": str(folder / "bert"),
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": tokenizer.context_length,
        }
        config = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}
        (folder / "model.json").write_text(json.dumps(config))
        torch.manual_seed(0)
        return build_model(Model(config=str(folder / "model.json"), init="random"), tokenizer)


def recipe_of(batch: int, precision: str, **changes: Any) -> Train:
    return Train.model_validate({"batch": batch, "micro_batches": 1, "precision": precision, **changes})


def learner_of(built: Built, recipe: Train, steps: int) -> Learner:
    return Learner(built.model, recipe, steps, built.preprocess_cfg["mean"], built.preprocess_cfg["std"])
