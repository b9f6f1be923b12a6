"""Both stages that run a trained bundle over a corpus, on hand-made products and a small model with random weights."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from biomedclip_ray.clip.bundle import save_bundle
from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.clip.model import build_model
from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import Config, ConfigError, Model, parse
from biomedclip_ray.evaluate.encode_pool import HeldOut
from biomedclip_ray.evaluate.evaluate import evaluate
from biomedclip_ray.evaluate.held_out import measure_pool
from biomedclip_ray.evaluate.leakage import LeakageError
from biomedclip_ray.images.image import decode
from biomedclip_ray.images.phash import perceptual_hash
from biomedclip_ray.schema import CORPUS, PAIRS, Reason, hash64
from biomedclip_ray.search.bulk import find, vectors
from biomedclip_ray.search.embed import embed
from biomedclip_ray.search.filters import Filters
from biomedclip_ray.search.index import Index
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.ledger import Count, Ledger
from biomedclip_ray.store.product import Product, StageError, ledger_name
from tests.evaluate.test_features import Odd

ARTICLES = 24
KINDS = ("gel", "chart", "micrograph")
# of 24 articles the first 8 are test, the next 2 validation; each has two whole figures, one of them with a panel
SPLITS = ["test"] * 8 + ["validation"] * 2 + ["train"] * 14


def jpeg(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    sink = io.BytesIO()
    small.resize((150, 100), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def article_rows(number: int, part: int) -> list[dict]:
    rows = []
    for figure, panel in ((1, 0), (1, 1), (2, 0)):
        seed = number * 10 + figure * 3 + panel
        rows.append(
            {
                "pair_id": f"PMC{number}.1/F{figure}#{panel}",
                "article_id": f"PMC{number}.1",
                "pmcid": f"PMC{number}",
                "part": part,
                "figure_id": f"PMC{number}.1/F{figure}",
                "panel": panel,
                "caption": f"A {KINDS[seed % 3]} of sample {seed}.",
                "text": f"a {KINDS[seed % 3]} of sample {seed}",
                "image": jpeg(seed),
                "sha256": f"sha{seed}",
                "phash": perceptual_hash(decode(jpeg(seed))),
                "figure_kind": KINDS[seed % 3],
                "year": 2000 + number,
                "license": "CC BY",
                "title": f"Title {number}",
            }
        )
    return rows


def finished(root: str, stage: str, inputs: list[Product], tables: list[pa.Table], note: str = "") -> Product:
    product = Product.plan(root, stage, 1, {"note": note}, inputs)
    with attempt(product, len(tables)) as current:
        for part, table in enumerate(tables):
            ledger = Ledger(stage)
            ledger.count("pair", table.num_rows, table.num_rows)
            current.write_part(part, table, ledger.table(), ledger.counts)
        current.finish_parts(0.0)
    return product


def corpus_of(root: str, pairs: Product, splits: list[str], note: str = "") -> Product:
    tables = []
    for table in pairs.scan(["pair_id", "pmcid", "panel"]):
        rows = [
            {
                "pair_id": row["pair_id"],
                "split": splits[int(row["pmcid"][3:])],
                "group": hash64(row["pair_id"]) >> 1,
                # the last article is not kept
                "kept": row["pmcid"] != f"PMC{ARTICLES - 1}",
                "reason": None,
            }
            for row in table.to_pylist()
        ]
        tables.append(pa.Table.from_pylist(rows, schema=CORPUS))
    return finished(root, "curate", [pairs], tables, note)


def trained_on(root: str, pairs: Product, corpus: Product, folder) -> Product:
    product = Product.plan(root, "train", 1, {}, [pairs, corpus])
    with attempt(product) as current:
        product.place.at("bundle").upload(folder)
        current.finish([Count("step", 1, 1)])
    return product


def labelled_set(folder: Path) -> str:
    """Two classes; of its six test images one is in the train split of the corpus, one in its test split."""
    about = {"name": "tiny", "task": "classification", "classes": ["gel", "chart"]}
    about["prompts"] = {"templates": ["a {}"], "class_names": {"gel": ["gel"], "chart": ["chart"]}}
    (folder / "dataset.json").write_text(json.dumps(about))
    for name, seeds in (("train", range(1000, 1020)), ("test", [2000, 2001, 2002, 2003, 203, 33])):
        labels = [about["classes"][seed % 2] for seed in seeds]
        table = pa.table(
            {"image": [jpeg(s) for s in seeds], "label": labels, "group": pa.nulls(len(seeds), pa.string())}
        )
        pq.write_table(table, folder / f"{name}.parquet")
    return str(folder)


@dataclasses.dataclass
class Made:
    config: Config
    pairs: Product
    corpus: Product
    bundle: Product
    folder: object
    rows: list[dict]

    @property
    def inputs(self) -> tuple[Product, Product, Product]:
        return self.bundle, self.pairs, self.corpus


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    root = str(tmp_path_factory.mktemp("root"))
    rows, tables = [], []
    for part in range(4):
        own = [row for number in range(part, ARTICLES, 4) for row in article_rows(number, part)]
        own = sorted(own, key=lambda row: row["pair_id"])
        rows += own
        tables.append(pa.Table.from_pylist(own, schema=PAIRS))
    pairs = finished(root, "preprocess", [], tables)
    corpus = corpus_of(root, pairs, SPLITS)
    tokenizer = fit_tokenizer([row["text"] for row in rows], 300, 32)
    torch.manual_seed(0)
    built = build_model(Model(config="sample_64", init="random"), tokenizer)
    folder = tmp_path_factory.mktemp("bundle")
    save_bundle(folder, built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {})
    bundle = trained_on(root, pairs, corpus, folder)
    resources = {"num_gpus": 1}  # as every recipe for GPUs has it; without one the encoder takes the CPU
    evaluation = {"bootstraps": 50, "sets": [labelled_set(tmp_path_factory.mktemp("set"))], "resources": resources}
    embedding = {"batch": 7, "thumbnail": 40, "resources": resources}
    config = parse({"root": root, "embed": embedding, "evaluate": evaluation}, "test")
    return Made(config, pairs, corpus, bundle, folder, rows)


@pytest.fixture(scope="module")
def embedded(made, ray_cluster) -> Product:
    return embed.run(made.config, *made.inputs).product


@pytest.fixture(scope="module")
def evaluated(made, ray_cluster) -> Product:
    return evaluate.run(made.config, *made.inputs).product


def test_the_index_holds_pairs_less_ledger(made, embedded):
    assert embedded.manifest["counts"] == [
        {"unit": "pair", "in": 72, "kept": 69, "dropped": {Reason.NOT_IN_CORPUS.value: 3}}
    ]
    index = Index.open(embedded.uri)
    assert index.count() == 69
    assert index.bundle == Encoder.load(made.folder).bundle_id
    assert index.count(Filters(splits=("test",))) == 24
    assert embedded.manifest["index"]["kind"] == "exact"


def test_vector_i_belongs_to_row_i_whatever_the_batch(made, embedded):
    encoder, index = Encoder.load(made.folder), Index.open(embedded.uri)
    for row in made.rows[:20]:
        found = index.get(row["pair_id"])
        np.testing.assert_allclose(found["image_vector"], encoder.encode_images([row["image"]])[0], atol=1e-5)
        np.testing.assert_allclose(found["text_vector"], encoder.encode_text([row["text"]])[0], atol=1e-5)
        assert found["caption"] == row["caption"]
        assert (found["year"], found["figure_kind"]) == (row["year"], row["figure_kind"])


def test_each_row_finds_itself_first_by_its_picture(embedded):
    index = Index.open(embedded.uri)
    for table in embedded.scan(["pair_id", "image_vector"]):
        for row in table.to_pylist():
            assert index.search(row["image_vector"], 1)[0].pair_id == row["pair_id"]


def test_rows_have_a_thumbnail_and_a_place_on_the_map(embedded):
    table = Index.open(embedded.uri).dataset.to_table(columns=["thumbnail", "x", "y"])
    with Image.open(io.BytesIO(table["thumbnail"][0].as_py())) as small:
        assert (small.format, small.size) == ("JPEG", (40, 27))
    for axis in ("x", "y"):
        values = table[axis].to_numpy()
        assert np.abs(values).max() == pytest.approx(1, abs=1e-5)
        assert abs(values.mean()) < 1e-5


def test_a_finished_index_is_skipped(made, embedded):
    assert embed.run(made.config, *made.inputs).state == "skipped"


def test_an_interrupted_embedding_goes_on_and_ends_with_the_same_rows(made, embedded):
    config = made.config.model_copy(update={"embed": made.config.embed.model_copy(update={"thumbnail": 41})})
    whole = embed.run(config, *made.inputs).product
    before = whole.read(0)
    place = whole.place
    place.delete("_MANIFEST.json")
    place.delete(ledger_name(0))  # killed between the two files of part 0, and before the table was finished
    again = embed.run(config, *made.inputs)
    assert again.state == "resumed"
    assert again.product.read(0).drop_columns(["image_vector", "text_vector"]) == before.drop_columns(
        ["image_vector", "text_vector"]
    )
    assert Index.open(again.product.uri).count() == 69


def test_splits_that_hold_nothing_are_an_error_not_an_empty_index(made, ray_cluster):
    corpus = corpus_of(made.config.root, made.pairs, ["train"] * ARTICLES, "only train")
    config = made.config.model_copy(update={"embed": made.config.embed.model_copy(update={"splits": ("test",)})})
    with pytest.raises(ConfigError, match=r"embed\.splits=\['test'\]"):
        embed.run(config, made.bundle, made.pairs, corpus)


def test_own_images_get_their_vectors_on_the_cluster(made, ray_cluster, tmp_path):
    for n in range(5):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n))
    config = parse({"root": str(tmp_path / "out"), "embed": {"batch": 2}}, "test")
    product = vectors.run(config, str(made.folder), find(str(tmp_path), "image")).product
    found = {row["id"]: row["vector"] for row in product.read(0).to_pylist()}
    expected = Encoder.load(made.folder).encode_images([jpeg(n) for n in range(5)])
    np.testing.assert_allclose([found[f"{n}.jpg"] for n in range(5)], expected, atol=1e-5)


def test_the_pool_is_one_whole_figure_per_figure_of_the_held_out_split(made, evaluated):
    result = json.loads(evaluated.place.read("evaluation.json"))
    assert (result["split"], result["n"], result["retrieval"]["n"]) == ("test", 16, 16)
    assert evaluated.manifest["counts"] == [{"unit": "held-out pair", "in": 24, "kept": 24, "dropped": {}}]
    assert result["bundle"] == Encoder.load(made.folder).bundle_id
    assert sum(kind["n"] for kind in result["by_kind"].values()) == 16


def test_recall_in_the_file_is_that_of_the_encoder_s_vectors(made, evaluated):
    encoder = Encoder.load(made.folder)
    pool = [row for row in made.rows if int(row["pmcid"][3:]) < 8 and row["panel"] == 0]
    text = encoder.encode_text([row["text"] for row in pool])
    image = encoder.encode_images([row["image"] for row in pool])
    scores = text @ image.T
    rank = (scores > np.diag(scores)[:, None]).sum(axis=1) + 1
    result = json.loads(evaluated.place.read("evaluation.json"))["retrieval"]
    for k in (1, 5, 10):
        figures = result["text_to_image"][f"recall@{k}"]
        assert figures["value"] == pytest.approx((rank <= k).mean(), abs=1e-6)
        assert figures["chance"] == k / 16
        assert figures["low"] <= figures["value"] <= figures["high"]
    assert result["text_to_image"]["median_rank"]["value"] == pytest.approx(np.median(rank))
    assert result["control_shuffled"]["image_to_text"]["recall@5"]["value"] == pytest.approx(5 / 16, rel=0.3)


def test_whole_figures_and_panels_are_slices_among_both_each_with_its_interval(made, evaluated):
    encoder = Encoder.load(made.folder)
    pool = [row for row in made.rows if int(row["pmcid"][3:]) < 8]
    text, image = encoder.encode_text([row["text"] for row in pool]), encoder.encode_images([r["image"] for r in pool])
    scores = text.astype(float) @ image.T.astype(float)
    hits = (scores > np.diag(scores)[:, None]).sum(axis=1) < 10
    whole = np.array([row["panel"] == 0 for row in pool])
    found = json.loads(evaluated.place.read("evaluation.json"))["slices"]
    assert list(found) == ["figure_kind", "license", "year", "caption_words", "image"]
    assert {name: (own["n"], own["of"]) for name, own in found["image"].items()} == {
        "panel": (8, 24),
        "whole": (16, 24),
    }
    for name, mine in (("whole", whole), ("panel", ~whole)):
        figure = found["image"][name]["text_to_image"]["recall@10"]
        assert figure["value"] == pytest.approx(hits[mine].mean())
        assert figure["low"] <= figure["value"] <= figure["high"] and figure["low"] < figure["high"]
    assert found["license"]["CC BY"]["of"] == 16
    assert pq.read_table(io.BytesIO(evaluated.place.read("rows/pool_with_panels.parquet"))).num_rows == 48


def test_a_labelled_set_is_measured_with_all_that_it_takes_to_repeat_it(made, evaluated):
    found = json.loads(evaluated.place.read("evaluation.json"))["sets"]["tiny"]
    assert found["zero_shot"]["n"] == 6
    assert found["zero_shot"]["templates"] == ["a {}"]
    assert sorted(found["files"]) == ["dataset.json", "test.parquet", "train.parquet"]
    assert found["encoder"]["preprocessing"]["size"] == [64, 64]
    assert found["linear_probe"]["n_train"] == 20
    assert found["images_near_training"] == {"n": 1, "of": 6, "by_hash_alone": 1, "ids": ["4"]}
    assert found["without_near_training"]["zero_shot"]["n"] == 5


def test_a_pair_without_a_finite_vector_is_a_ledger_row_and_too_many_end_the_stage(made):
    black = io.BytesIO()
    Image.new("RGB", (150, 100)).save(black, "JPEG")
    tables = []
    for table in made.pairs.scan():
        rows = [r | ({"image": black.getvalue()} if r["pair_id"] == "PMC3.1/F2#0" else {}) for r in table.to_pylist()]
        tables.append(pa.Table.from_pylist(rows, schema=PAIRS))
    pairs = finished(made.config.root, "preprocess", [], tables, "a black image")
    corpus = corpus_of(made.config.root, pairs, SPLITS, "a black image")
    arguments = (str(made.folder), pairs, corpus, made.config.evaluate)
    held = HeldOut(*arguments)
    held.encoder = Odd.load(made.folder)
    result = held(HeldOut.read(0, *arguments))
    assert [(row["id"], row["reason"]) for row in result.ledger.rows] == [("PMC3.1/F2#0", Reason.NON_FINITE.value)]
    assert result.ledger.counts == {"held-out pair": (24, 23)}
    assert "PMC3.1/F2#0" not in result.data["pair_id"].to_pylist() and result.data.num_rows == 23
    product = Product.plan(made.config.root, "evaluate", 1, {"note": "a black image"}, [pairs])
    with attempt(product, 1) as current:
        current.write_part(0, result.data, result.ledger.table(), result.ledger.counts)
        with pytest.raises(StageError, match=r"1 of 16 held-out pairs have a vector .* the first is PMC3\.1/F2#0"):
            measure_pool(current, made.config.evaluate)


def test_the_plots_are_pictures(evaluated):
    for name in ("recall.png", "ranks.png", "recall_by_kind.png"):
        with Image.open(io.BytesIO(evaluated.place.read(name))) as picture:
            assert picture.format == "PNG"
            assert picture.width >= 600


def test_a_finished_evaluation_is_skipped(made, evaluated):
    assert evaluate.run(made.config, *made.inputs).state == "skipped"


def test_a_bundle_trained_on_todays_test_articles_is_refused(made, ray_cluster):
    other = corpus_of(made.config.root, made.pairs, SPLITS[::-1], "split otherwise")
    bundle = trained_on(made.config.root, made.pairs, other, made.folder)
    with pytest.raises(LeakageError, match=r"was trained on PMC0\.1/F1#0 .* test split"):
        evaluate.run(made.config, bundle, made.pairs, made.corpus)


def test_a_bundle_trained_on_a_copy_of_a_test_picture_is_refused(made, ray_cluster):
    tables = []
    for table in made.pairs.scan():
        rows = table.to_pylist()
        for row in rows:
            # yesterday article 20, in train, showed the image of test article 3
            row["sha256"] = "sha33" if row["pair_id"] == "PMC20.1/F1#0" else row["sha256"]
        tables.append(pa.Table.from_pylist(rows, schema=PAIRS))
    pairs = finished(made.config.root, "preprocess", [], tables, "yesterday")
    bundle = trained_on(made.config.root, pairs, corpus_of(made.config.root, pairs, SPLITS), made.folder)
    with pytest.raises(LeakageError, match=r"PMC20\.1/F1#0"):
        evaluate.run(made.config, bundle, made.pairs, made.corpus)


def test_nothing_held_out_is_an_error_that_names_the_key(made, ray_cluster):
    corpus = corpus_of(made.config.root, made.pairs, ["train"] * ARTICLES, "nothing held out")
    with pytest.raises(ConfigError, match=r"evaluate\.split=test: .* raise curate\.splits\.test"):
        evaluate.run(made.config, made.bundle, made.pairs, corpus)
