"""The stages as preflight is asked about them: each with what it reads."""

from __future__ import annotations

from collections.abc import Iterable

from biomedclip_ray.config import STAGES, Config
from biomedclip_ray.corpus.curate import curate
from biomedclip_ray.evaluate.evaluate import evaluate
from biomedclip_ray.figures.preprocess import preprocess
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.pmc.ingest import ingest
from biomedclip_ray.run.preflight import Step
from biomedclip_ray.search.embed import embed
from biomedclip_ray.serve import needs
from biomedclip_ray.store.product import Product
from biomedclip_ray.train.train import train


def inputs(config: Config) -> tuple[Product, Product]:
    """Pairs and corpus, as training is given them."""
    pairs, corpus = (Product.plan(config.root, stage, 1, {}, []) for stage in ("preprocess", "curate"))
    return pairs, corpus


def steps(config: Config, names: Iterable[str] = STAGES) -> list[Step]:
    stages = (catalog, ingest, preprocess, curate, train, evaluate, embed, needs)
    wanted = set(names)
    return [(stage, inputs(config)) for name, stage in zip(STAGES, stages, strict=True) if name in wanted]
