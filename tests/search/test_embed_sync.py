"""A later inventory with the same weights: vectors of what did not change are taken over, and the index is extended."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from biomedclip_ray.clip.bundle import save_bundle
from biomedclip_ray.clip.model import build_model
from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import Config, Model, parse
from biomedclip_ray.corpus.curate import curate
from biomedclip_ray.corpus.erase import erase
from biomedclip_ray.run.parts import Runner, in_process
from biomedclip_ray.schema import CORPUS, LEDGER, PAIRS
from biomedclip_ray.search.embed import MAP, embed
from biomedclip_ray.search.index import Index
from biomedclip_ray.search.table import TABLE
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.ledger import Count
from biomedclip_ray.store.parquet import conform
from biomedclip_ray.store.product import Product

PARTS, OF_A_PART = 2, 20
WORDS = "gel chart retina liver lung kidney blot axis".split()
Rows = dict[int, dict]


def row(n: int, seed: int | None = None, **other) -> dict:
    """Pair `n` with an image drawn from `seed`."""
    sink = io.BytesIO()
    drawn = np.random.default_rng(n if seed is None else seed).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(drawn).save(sink, "JPEG")
    text = f"a {WORDS[n % 8]} number{n}"
    return {
        "pair_id": f"PMC{n}.1/F1#0",
        "article_id": f"PMC{n}.1",
        "pmcid": f"PMC{n}",
        "figure_id": f"PMC{n}.1/F1",
        "panel": 0,
        "caption": text,
        "text": text,
        "title": "A title",
        "image": sink.getvalue(),
        "sha256": f"sha{n if seed is None else seed}",
        "split": "train",
        "kept": True,
        **other,
    }


FIRST: Rows = {n: row(n) for n in range(PARTS * OF_A_PART)}
TEXT, IMAGE, TITLE, SPLIT, DROPPED, LEFT, NEW = 3, 26, 7, 28, 12, 9, 100
SECOND: Rows = {
    **FIRST,
    TEXT: row(TEXT, caption="a scan of arrowheads", text="a scan of arrowheads"),
    IMAGE: row(IMAGE, seed=1000),
    TITLE: row(TITLE, title="Corrected"),
    SPLIT: row(SPLIT, split="test"),
    DROPPED: row(DROPPED, kept=False),
    NEW: row(NEW),
}
del SECOND[LEFT]
MADE_ANEW = {TEXT, IMAGE, NEW}


class Root:
    """Products of a root as the stages before leave them."""

    def __init__(self, folder: str, runner: Runner = in_process, **section: Any) -> None:
        self.config: Config = parse({"root": folder, "embed": {"batch": 3, **section}}, "test")
        self.runner = runner

    def pairs(self, rows: Rows, note: str, parent: Product | None = None) -> Product:
        return self._finish(Product.plan(self.config.root, "preprocess", 1, {"note": note}, []), PAIRS, rows, parent)

    def corpus(self, rows: Rows, pairs: Product) -> Product:
        return self._finish(curate.plan(self.config, pairs), CORPUS, rows)

    def _finish(self, product: Product, schema: pa.Schema, rows: Rows, parent: Product | None = None) -> Product:
        with attempt(product, PARTS) as current:
            current.parent = parent
            for part in range(PARTS):
                own = [rows[n] for n in sorted(rows) if n // OF_A_PART % PARTS == part]
                table = conform(pa.Table.from_pylist(own, schema=schema), schema)
                current.write_part(part, table, LEDGER.empty_table(), {"pair": (len(table), len(table))})
            current.finish_parts(0.0)
        return product

    def bundle(self, folder, note: str) -> Product:
        product = Product.plan(self.config.root, "train", 1, {"note": note}, [])
        with attempt(product) as current:
            product.place.at("bundle").upload(folder)
            current.finish([Count("step", 1, 1)], {"bundle_id": "the same weights"})
        return product

    def embed(self, rows: Rows, bundle: Product, pairs: Product) -> Product:
        return embed.run(self.config, bundle, pairs, self.corpus(rows, pairs), runner=self.runner).product


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = fit_tokenizer([pair["text"] for pair in FIRST.values()] * 5, 300, 32)
    torch.manual_seed(0)
    built = build_model(Model(config="sample_64", init="random"), tokenizer)
    folder = tmp_path_factory.mktemp("bundle")
    save_bundle(folder, built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {})
    return folder


@pytest.fixture(scope="module")
def synced(folder, tmp_path_factory) -> tuple[Root, Product, Product]:
    """A root whose bundle was trained at first and was then taken as it is; both embeddings."""
    root = Root(str(tmp_path_factory.mktemp("root")))
    before = root.pairs(FIRST, "first")
    first = root.embed(FIRST, root.bundle(folder, "trained"), before)
    later = root.pairs(SECOND, "second", before)
    return root, first, root.embed(SECOND, root.bundle(folder, "taken as it is"), later)


@pytest.fixture(scope="module")
def anew(folder, tmp_path_factory) -> Product:
    """The later inventory in a root that has seen no other."""
    root = Root(str(tmp_path_factory.mktemp("anew")))
    return root.embed(SECOND, root.bundle(folder, "trained"), root.pairs(SECOND, "second"))


def table(product: Product) -> list[dict]:
    columns = [name for name in Index.open(product.uri).dataset.schema.names if name not in ("x", "y")]
    return sorted(
        Index.open(product.uri).dataset.to_table(columns=columns).to_pylist(), key=lambda pair: pair["pair_id"]
    )


def test_the_rows_are_those_of_an_index_that_was_made_anew(synced, anew):
    ours, theirs = table(synced[2]), table(anew)
    assert len(ours) == len(theirs) == 39
    for one, other in zip(ours, theirs, strict=True):
        for column in ("image_vector", "text_vector"):
            np.testing.assert_allclose(one.pop(column), other.pop(column), atol=1e-5)
        assert one == other
    assert synced[2].manifest["counts"] == anew.manifest["counts"]


def test_only_what_is_new_was_encoded_and_all_else_is_the_parents_to_the_bit(synced):
    _, first, second = synced
    parent = second.manifest["parent"]
    assert (parent["fingerprint"], parent["reused_rows"]) == (first.fingerprint, 39 - len(MADE_ANEW))
    vectors = {pair["pair_id"]: (pair["image_vector"], pair["text_vector"]) for pair in table(first)}
    for pair in table(second):
        if pair["pair_id"] not in {f"PMC{n}.1/F1#0" for n in MADE_ANEW}:
            assert (pair["image_vector"], pair["text_vector"]) == vectors[pair["pair_id"]]


def test_the_parents_fragments_are_kept_and_its_map_too(synced):
    _, first, second = synced
    files = [set(product.place.at(f"{TABLE}/data").list()) for product in (first, second)]
    assert files[0] < files[1]
    places = [
        {hit["pair_id"]: (hit["x"], hit["y"]) for hit in Index.open(product.uri).dataset.to_table().to_pylist()}
        for product in (first, second)
    ]
    stayed = places[0].keys() & places[1].keys() - {f"PMC{IMAGE}.1/F1#0"}
    assert len(stayed) == 37
    for pair_id in stayed:
        assert places[0][pair_id] == pytest.approx(places[1][pair_id], abs=1e-6)


def test_an_extension_of_an_extension_has_the_map_of_the_first(synced, folder):
    root, first, second = synced
    rows = {**SECOND, NEW + 1: row(NEW + 1)}
    pairs = root.pairs(rows, "and one more", Product.load(root.config.root, *second.inputs[1]))
    third = root.embed(rows, root.bundle(folder, "and again"), pairs)
    assert third.manifest["parent"]["fingerprint"] == second.fingerprint
    mean, *axes = np.load(io.BytesIO(first.place.read(MAP)))
    for hit in Index.open(third.uri).dataset.to_table().to_pylist():
        placed = [float((np.array(hit["image_vector"], np.float32) - mean) @ axis) for axis in axes]
        assert [hit["x"], hit["y"]] == pytest.approx(placed, abs=1e-5), hit["pair_id"]


def test_it_finds_what_came_and_nothing_that_left(synced):
    index = Index.open(synced[2].uri)
    assert [hit.pair_id for hit in index.text_search("arrowheads")] == [f"PMC{TEXT}.1/F1#0"]
    assert [hit.pair_id for hit in index.text_search(f"number{NEW}")] == [f"PMC{NEW}.1/F1#0"]
    for gone in (TEXT, LEFT, DROPPED):
        assert index.text_search(f"number{gone}") == []
    assert index.dataset.stats.index_stats("words_idx")["num_unindexed_rows"] == 0


def test_what_left_is_known_as_long_as_the_tables_files_hold_it_so_that_it_can_be_erased(synced, folder):
    root, _, second = synced
    third = root.pairs(SECOND, "third", Product.load(root.config.root, *second.inputs[1]))
    extended = root.embed(SECOND, root.bundle(folder, "once more"), third)
    gone = [f"PMC{DROPPED}.1/F1#0", f"PMC{LEFT}.1/F1#0"]
    assert [product.manifest["index"]["deleted"] for product in (second, extended)] == [gone, gone]
    done = erase(root.config, f"PMC{LEFT}.1")
    assert {f"embed/{second.fingerprint}", f"embed/{extended.fingerprint}"} <= set(done.again)
    assert not extended.finished and not extended.place.at(TABLE).list()
