"""The embed stage in this process: pairs whose vectors are non-finite, and an index of everything else."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from biomedclip_ray.clip.bundle import load_bundle, save_bundle
from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.clip.model import build_model
from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import Config, Model, parse
from biomedclip_ray.run.parts import in_process
from biomedclip_ray.schema import CORPUS, LEDGER, PAIRS, Reason
from biomedclip_ray.search.embed import NonFiniteError, embed
from biomedclip_ray.search.index import Index
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.ledger import Count
from biomedclip_ray.store.parquet import conform
from biomedclip_ray.store.product import Product

WORDS = "gel chart retina liver lung kidney blot axis".split()
PAIRS_OF_A_PART = 8


def text(n: int) -> str:
    return f"a {WORDS[n % 8]} of sample{' with arrowheads' if n == 5 else ''}"


def image(seed: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(sink, "JPEG")
    return sink.getvalue()


def rows(part: int, schema: pa.Schema) -> pa.Table:
    made = [
        {
            "pair_id": f"PMC{n}.1/F1#0",
            "article_id": f"PMC{n}.1",
            "pmcid": f"PMC{n}",
            "figure_id": f"PMC{n}.1/F1",
            "panel": 0,
            "label": "Fig. 1",
            "caption": text(n),
            "text": text(n),
            "image": image(n),
            "pmid": str(5_000_000 + n),
            "doi": f"10.1000/J.{n}",
            "split": "train",
            "kept": True,
        }
        for n in range(part * PAIRS_OF_A_PART, (part + 1) * PAIRS_OF_A_PART)
    ]
    return conform(pa.Table.from_pylist(made, schema=schema), schema)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Config, Product, Product, Path]:
    root = str(tmp_path_factory.mktemp("root"))
    pairs = Product.plan(root, "preprocess", 1, {}, [])
    corpus = Product.plan(root, "curate", 1, {}, [pairs])
    for product, schema in ((pairs, PAIRS), (corpus, CORPUS)):
        with attempt(product, 2) as current:
            for part in range(2):
                table = rows(part, schema)
                current.write_part(part, table, LEDGER.empty_table(), {"pair": (len(table), len(table))})
            current.finish_parts(0.0)
    tokenizer = fit_tokenizer([text(n) for n in range(16)] * 5, 300, 32)
    torch.manual_seed(0)
    built = build_model(Model(config="sample_64", init="random"), tokenizer)
    folder = tmp_path_factory.mktemp("bundle")
    save_bundle(folder, built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {})
    return parse({"root": root, "embed": {"batch": 3}}, "test"), pairs, corpus, folder


def trained(made, folder: Path, note: str) -> Product:
    config, pairs, corpus, _ = made
    product = Product.plan(config.root, "train", 1, {"note": note}, [pairs, corpus])
    with attempt(product) as current:
        product.place.at("bundle").upload(folder)
        current.finish([Count("step", 1, 1)])
    return product


def run(made, bundle: Product, **section) -> Product:
    config, pairs, corpus, _ = made
    config = config.model_copy(update={"embed": config.embed.model_copy(update=section)})
    return embed.run(config, bundle, pairs, corpus, runner=in_process).product


def test_the_index_holds_every_pair_with_its_vectors_words_and_numbers(made):
    index = Index.open(run(made, trained(made, made[3], "whole")).uri)
    assert index.count() == 16
    encoder = Encoder.load(made[3])
    row = index.get("PMC5.1/F1#0")
    np.testing.assert_allclose(row["image_vector"], encoder.encode_images([image(5)])[0], atol=1e-5)
    np.testing.assert_allclose(row["text_vector"], encoder.encode_text([text(5)])[0], atol=1e-5)
    assert (row["label"], row["panel"], row["pmid"]) == ("Fig. 1", 0, "5000005")
    for query in ("arrowhead", "PMC5", "5000005", "https://doi.org/10.1000/j.5"):
        assert [hit.pair_id for hit in index.text_search(query)] == ["PMC5.1/F1#0"]


@pytest.fixture(scope="module")
def broken(made, tmp_path_factory) -> Product:
    """The bundle with NaN for a token that the fifth text alone holds."""
    bundle = load_bundle(made[3])
    ids = bundle.tokenizer([text(n) for n in range(16)])
    token = next(int(t) for t in ids[5] if (ids == t).any(axis=1).sum() == 1)
    with torch.no_grad():
        bundle.model.text.token_embedding.weight[token] = float("nan")
    folder, info = tmp_path_factory.mktemp("broken"), bundle.info
    save_bundle(folder, bundle.model, info["model_cfg"], info["preprocess_cfg"], bundle.tokenizer, {})
    return trained(made, folder, "broken")


def test_a_pair_without_a_vector_is_a_ledger_row(made, broken):
    product = run(made, broken, non_finite_limit=0.1)
    assert product.manifest["counts"] == [
        {"unit": "pair", "in": 16, "kept": 15, "dropped": {Reason.NON_FINITE.value: 1}}
    ]
    (row,) = product.ledger().to_pylist()
    assert (row["id"], row["reason"], row["detail"]) == ("PMC5.1/F1#0", "non_finite", "text vector")
    index = Index.open(product.uri)
    assert index.count() == 15
    assert index.get("PMC5.1/F1#0") is None


def test_more_than_the_stated_share_are_an_error_that_says_so(made, broken):
    with pytest.raises(
        NonFiniteError, match=r"1 of 16 pairs have a non-finite vector, above embed\.non_finite_limit=0\.05"
    ):
        run(made, broken, non_finite_limit=0.05)
