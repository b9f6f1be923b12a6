"""Exports opened with the libraries they are for: every kept pair once, images as images, ids with dots unharmed."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from biomedclip_ray.config import Config, ConfigError, parse
from biomedclip_ray.corpus.curate import curate
from biomedclip_ray.corpus.export import export, plan_shards, write_shard
from biomedclip_ray.figures.preprocess import preprocess
from biomedclip_ray.images.image import decode
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.pmc.ingest import ingest
from biomedclip_ray.sources.inventory import resolve_inventory
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product
from tests.conftest import S3

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def made(corpus: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Config, Product, Product]:
    """Real articles, those of PLOS among them, whose figure ids hold a dot ("pone-0012255-g001",
    "pone.0012255.g001").
    """
    raw = {
        "root": str(tmp_path_factory.mktemp("root")),
        "source": {"uri": str(corpus / "bucket"), "articles_per_part": 12, "select": {"licenses": "all"}},
        "curate": {"splits": {"validation": 0.2, "test": 0.2}},
    }
    config = parse(raw, "test")
    pairs = preprocess.run(
        config, ingest.run(config, catalog.run(config, resolve_inventory(config)).product).product
    ).product
    return config, pairs, curate.run(config, pairs).product


@pytest.fixture(scope="module")
def kept(made: tuple[Config, Product, Product]) -> pd.DataFrame:
    _, pairs, corpus = made
    rows, judged = (
        pd.concat([t.to_pandas() for t in product.scan()], ignore_index=True) for product in (pairs, corpus)
    )
    rows["split"] = judged["split"]
    return rows[judged["kept"]].set_index("pair_id")


def test_webdataset_gives_each_kept_pair_as_one_sample(
    made: tuple[Config, Product, Product], kept: pd.DataFrame, tmp_path: Path
) -> None:
    import webdataset

    note = export(*made, str(tmp_path), "webdataset")
    assert any("." in name.partition("/")[2] for name in kept.index)
    seen: Counter[str] = Counter()
    for shard in note["shards"]:
        data = webdataset.WebDataset(str(tmp_path / shard["name"]), shardshuffle=False).decode("pil")
        for sample in data:
            facts = sample["json"]
            expected = kept.loc[facts["pair_id"]]
            seen[facts["pair_id"]] += 1
            assert re.fullmatch(r"[A-Za-z0-9_-]+", sample["__key__"])
            assert sample["txt"] == expected["text"]
            assert facts["caption"] == expected["caption"]
            assert facts["split"] == expected["split"] == shard["split"]
            assert int(facts["phash"], 16) == expected["phash"]
            assert sample["jpg"].size == (expected["width"], expected["height"])
    assert seen == Counter(kept.index)
    assert sum(shard["pairs"] for shard in note["shards"]) == len(kept)


def test_datasets_opens_the_folder_with_pictures_and_splits(
    made: tuple[Config, Product, Product], kept: pd.DataFrame, tmp_path: Path
) -> None:
    import datasets

    export(*made, str(tmp_path / "out"), "datasets")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == dict(Counter(kept["split"]))
    for row in (row for rows in loaded.values() for row in rows.select(range(min(len(rows), 15)))):
        expected = kept.loc[row["pair_id"]]
        assert isinstance(row["image"], Image.Image)
        assert (decode(expected["image"]) == row["image"].convert("RGB")).mean() > 0.5  # decoders round differently
        assert (row["text"], row["license"]) == (expected["text"], expected["license"])
        assert row["mentions"] == list(expected["mentions"])
        assert row["phash"] == expected["phash"]
    streamed = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    assert isinstance(next(iter(streamed))["image"], Image.Image)
    frame = pd.concat(pd.read_parquet(path) for path in sorted((tmp_path / "out" / "data").glob("*.parquet")))
    assert sorted(frame["pair_id"]) == sorted(kept.index)


@pytest.mark.parametrize("form", ["webdataset", "datasets"])
def test_croissant_metadata_is_valid_and_its_records_are_the_pairs(
    made: tuple[Config, Product, Product], kept: pd.DataFrame, tmp_path: Path, form: str
) -> None:
    import mlcroissant

    export(*made, str(tmp_path), form)
    dataset = mlcroissant.Dataset(jsonld=str(tmp_path / "croissant.json"))
    assert dataset.metadata.ctx.issues.errors == set()
    assert dataset.metadata.ctx.issues.warnings == set()
    assert set(dataset.metadata.license) == set(kept["license"])
    if form == "datasets":
        records = list(dataset.records("pairs"))
        assert {row["pairs/pair_id"].decode() for row in records} == set(kept.index)
        assert isinstance(records[0]["pairs/image"], Image.Image)


def test_the_card_counts_and_names_sources_date_and_terms(
    made: tuple[Config, Product, Product], kept: pd.DataFrame, tmp_path: Path
) -> None:
    note = export(*made, str(tmp_path), "datasets")
    card = (tmp_path / "README.md").read_text()
    for column in ("split", "license", "figure_kind"):
        assert note["counts"][column] == dict(Counter(kept[column]))
        for name, n in Counter(kept[column]).items():
            assert f"| {name} | {n:,} |" in card
    date = resolve_inventory(made[0]).date
    assert f"| PubMed Central (PMC Cloud Service, s3://pmc-oa-opendata) | {date} |" in card
    assert "courtesy of the U.S. National Library of Medicine" in card
    assert "does not show the most current and accurate data" in card
    assert note["sources"] == [{"name": "PubMed Central (PMC Cloud Service, s3://pmc-oa-opendata)", "date": date}]


def test_an_interrupted_export_goes_on_and_gives_the_same_bytes_also_on_s3(
    made: tuple[Config, Product, Product], tmp_path: Path, s3: S3
) -> None:
    (tmp_path / "empty").mkdir()
    whole, remote = Place(str(tmp_path / "whole")), Place(s3.upload(tmp_path / "empty") + "/out")
    note = export(*made, whole.uri, "webdataset")
    assert export(*made, remote.uri, "webdataset") == note
    assert {name: remote.read(name) for name in remote.list()} == {name: whole.read(name) for name in whole.list()}
    again = Place(str(tmp_path / "again"))
    export(*made, again.uri, "webdataset")
    begun = {key: note[key] for key in ("version", "form", "splits", "pairs", "corpus")}
    again.write("_EXPORT.json", json.dumps(begun).encode())  # as if killed before its first shard was marked
    again.delete(note["shards"][0]["name"])
    again.delete("README.md")
    assert export(*made, again.uri, "webdataset") == note
    assert {name: again.read(name) for name in again.list()} == {name: whole.read(name) for name in whole.list()}


def test_a_shard_that_is_there_is_not_written_again(made: tuple[Config, Product, Product], tmp_path: Path) -> None:
    first, *_ = plan_shards(made[2], "datasets", ("train", "validation", "test"))
    place = Place(str(tmp_path))
    begun = {"version": 1, "form": "datasets", "splits": ["train", "validation", "test"]}
    begun |= {"pairs": made[1].fingerprint, "corpus": made[2].fingerprint}
    place.write("_EXPORT.json", json.dumps(begun).encode())
    write_shard(first, place, made[1], made[2], "datasets")
    before = (tmp_path / first.name).stat().st_mtime_ns
    note = export(*made, str(tmp_path), "datasets")
    assert (tmp_path / first.name).stat().st_mtime_ns == before
    assert note["shards"][0]["pairs"] == first.pairs
    assert all(place.exists(shard["name"]) for shard in note["shards"])


def test_another_export_or_a_full_folder_is_refused(made: tuple[Config, Product, Product], tmp_path: Path) -> None:
    export(*made, str(tmp_path / "a"), "datasets")
    with pytest.raises(ConfigError, match="holds another export"):
        export(*made, str(tmp_path / "a"), "webdataset")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.docx").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"is not empty \(it holds thesis.docx\)"):
        export(*made, str(tmp_path / "b"), "datasets")


def test_shards_fill_up_to_their_size_and_never_stand_empty(
    made: tuple[Config, Product, Product], kept: pd.DataFrame
) -> None:
    corpus = made[2]
    shards = plan_shards(corpus, "datasets", ("train", "test"), pairs_per_shard=60)
    assert all(shard.pairs > 0 for shard in shards)
    sizes = Counter({split: sum(s.pairs for s in shards if s.split == split) for split in ("train", "test")})
    assert sizes == {split: int((kept["split"] == split).sum()) for split in ("train", "test")}
    train = [shard for shard in shards if shard.split == "train"]
    assert [shard.name for shard in train] == [
        f"data/train-{n:05d}-of-{len(train):05d}.parquet" for n in range(len(train))
    ]
    assert [part for shard in train for part in shard.parts] == sorted(
        {part for shard in train for part in shard.parts}
    )
    assert max(shard.pairs for shard in train if len(shard.parts) > 1) <= 60
