"""Catalog to corpus on a real Ray: every unit accounted for, on the sample's known faults and on real articles."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from biomedclip_ray.config import Config, parse
from biomedclip_ray.corpus.curate import curate
from biomedclip_ray.figures.preprocess import preprocess
from biomedclip_ray.figures.select import figure_text
from biomedclip_ray.images.image import decode
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.pmc.ingest import ingest
from biomedclip_ray.run.stage import Outcome
from biomedclip_ray.sample import Truth, make_bucket
from biomedclip_ray.schema import ARTICLES, CATALOG, CORPUS, PAIRS
from biomedclip_ray.sources.inventory import resolve_inventory
from biomedclip_ray.store.attempt import UnfinishedError
from biomedclip_ray.store.product import Product
from tests.conftest import S3
from tests.text_classifier import fit_gel_classifier

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "bucket"
    make_bucket(folder, n_articles=40, seed=3)
    return folder


def _config(root: Path | str, uri: Path | str, **source: object) -> Config:
    return parse({"root": str(root), "source": {"uri": str(uri), "articles_per_part": 12, **source}}, "test")


def _outcomes(config: Config) -> dict[str, Outcome]:
    versions = catalog.run(config, resolve_inventory(config))
    articles = ingest.run(config, versions.product)
    pairs = preprocess.run(config, articles.product)
    return {
        "catalog": versions,
        "ingest": articles,
        "preprocess": pairs,
        "curate": curate.run(config, pairs.product),
    }


def _data_stages(config: Config) -> dict[str, Product]:
    return {name: outcome.product for name, outcome in _outcomes(config).items()}


def _rows(product: Product) -> pd.DataFrame:
    return pd.concat([table.to_pandas() for table in product.scan()], ignore_index=True)


@pytest.fixture(scope="module")
def products(bucket: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> dict[str, Product]:
    return _data_stages(_config(tmp_path_factory.mktemp("root"), bucket))


def _expected(fates: Counter[str]) -> dict[str, object]:
    kept = fates["kept"]
    dropped = {reason: n for reason, n in fates.items() if reason != "kept" and n}
    return {"in": kept + sum(dropped.values()), "kept": kept, "dropped": dropped}


def test_every_planted_fault_is_in_the_ledger_and_nothing_else_is(bucket: Path, products: dict[str, Product]) -> None:
    truth = Truth.load(bucket).fates()
    counted = {
        c["unit"]: {k: c[k] for k in ("in", "kept", "dropped")} for p in products.values() for c in p.manifest["counts"]
    }
    assert counted["article_version"] == _expected(truth["versions"])
    assert counted["article"] == _expected(truth["articles"])
    assert counted["figure"] == _expected(truth["figures"])
    assert counted["picture"] == _expected(truth["pictures"])
    assert counted["pair"]["in"] == counted["picture"]["kept"]


def test_each_ledger_row_names_its_unit_and_the_reason_that_was_planted(
    bucket: Path, products: dict[str, Product]
) -> None:
    truth = Truth.load(bucket)
    fates = {f.figure_id: f.fate for f in truth.figures()} | {a.article_id: a.fate for a in truth.articles}
    for stage in ("catalog", "ingest", "preprocess"):
        for row in products[stage].ledger().to_pylist():
            assert row["stage"] == stage
            assert fates[row["id"].split("#")[0]] == row["reason"], row


def test_captions_labels_mentions_and_files_are_what_was_drawn(bucket: Path, products: dict[str, Product]) -> None:
    truth = {f.figure_id: f for f in Truth.load(bucket).figures()}
    pairs = _rows(products["preprocess"])
    assert set(pairs["figure_id"]) == {i for i, f in truth.items() if f.fate == "kept"}
    for figure_id, rows in pairs.groupby("figure_id"):
        expected = truth[figure_id]
        assert set(rows["caption"]) == {expected.caption}
        assert set(rows["label"].fillna("")) == {expected.label}
        assert sorted(rows["media_name"]) == sorted(expected.graphics)
        assert [list(m) for m in rows["mentions"]] == [expected.mentions] * len(rows)


def test_duplicates_share_a_group_and_the_same_caption_is_kept_once(bucket: Path, products: dict[str, Product]) -> None:
    pairs, corpus = _rows(products["preprocess"]), _rows(products["curate"])
    assert pairs["pair_id"].tolist() == corpus["pair_id"].tolist()
    corpus["figure_id"] = pairs["figure_id"]
    by_figure = corpus.set_index("figure_id")
    for twin in Truth.load(bucket).duplicates:
        first, second = by_figure.loc[twin["first"]], by_figure.loc[twin["second"]]
        assert first["group"] == second["group"]
        if twin["same_caption"] or first["split"] != second["split"]:
            assert int(first["kept"]) + int(second["kept"]) == 1
        else:
            assert first["kept"]
            assert second["kept"]


def test_every_file_has_the_products_schema_and_is_sorted(products: dict[str, Product]) -> None:
    for stage, schema in {"catalog": CATALOG, "ingest": ARTICLES, "preprocess": PAIRS, "curate": CORPUS}.items():
        key = schema.names[0]
        for table in products[stage].scan():
            assert table.schema.equals(schema)
            assert table[key].to_pylist() == sorted(table[key].to_pylist())


def test_the_newest_version_is_taken_even_where_it_is_the_tenth(bucket: Path, products: dict[str, Product]) -> None:
    tenth = [a.article_id for a in Truth.load(bucket).articles if a.case == "numeric_versions" and a.fate == "kept"]
    assert tenth
    assert all(article_id.endswith(".10") for article_id in tenth)
    assert set(tenth) <= set(_rows(products["catalog"])["article_id"])


def test_pictures_are_stored_small_and_whole(products: dict[str, Product]) -> None:
    for row in _rows(products["preprocess"]).to_dict("records"):
        pixels = decode(row["image"])
        assert pixels.shape == (row["height"], row["width"], 3)
        assert min(row["width"], row["height"]) == min(384, row["original_width"], row["original_height"])


def test_a_finished_stage_is_skipped_and_a_lost_part_is_made_again(bucket: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, bucket)
    first = _data_stages(config)
    before = {name: path.stat().st_mtime_ns for name, path in _files(tmp_path).items()}
    again = _outcomes(config)
    assert {outcome.state for outcome in again.values()} == {"skipped"}
    assert before == {name: path.stat().st_mtime_ns for name, path in _files(tmp_path).items()}
    rows = _rows(first["preprocess"])
    first["preprocess"].place.delete("_MANIFEST.json")
    first["preprocess"].place.delete("data/part-00001.parquet")
    resumed = preprocess.run(config, again["ingest"].product)
    assert resumed.state == "resumed"
    pd.testing.assert_frame_equal(_rows(resumed.product), rows)
    touched = [n for n, p in _files(tmp_path).items() if before.get(n) != p.stat().st_mtime_ns and "/part-" in n]
    assert [name.rsplit("/", 1)[1] for name in touched] == ["part-00001.parquet"] * 2


def _files(root: Path) -> dict[str, Path]:
    return {str(path): path for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_list_is_accounted_for_id_by_id(bucket: Path, products: dict[str, Product], tmp_path: Path) -> None:
    known = sorted({row["pmcid"] for row in products["catalog"].read(0, ["pmcid"]).to_pylist()})[:4]
    (tmp_path / "ids.txt").write_text("\n".join([*known, "PMC1", "2", known[0], known[0], "PMC1"]))
    config = _config(tmp_path / "root", bucket, select={"pmcids": str(tmp_path / "ids.txt")}, articles_per_part=2)
    listed = catalog.run(config, resolve_inventory(config)).product
    assert {c["unit"]: c for c in listed.manifest["counts"]}["listed_pmcid"] == {
        "unit": "listed_pmcid",
        "in": 9,
        "kept": 4,
        "dropped": {"listed_again": 3, "unknown_pmcid": 2},
    }
    ledger = listed.ledger().to_pandas().query("unit == 'listed_pmcid'")
    assert sorted(ledger["id"] + " " + ledger["reason"]) == sorted(
        ["PMC1 listed_again", "PMC1 unknown_pmcid", "PMC2 unknown_pmcid", *[f"{known[0]} listed_again"] * 2]
    )
    assert set(_rows(listed)["pmcid"]) == set(known)


def test_a_source_that_fails_for_a_while_adds_exactly_what_was_missing(bucket: Path, tmp_path: Path, s3: S3) -> None:
    plain = _data_stages(_config(tmp_path / "plain", bucket))
    uri = s3.upload(bucket)
    config = _config(tmp_path / "flaky", uri, resources={"retries": 0, "deadline_s": 20})
    articles = ingest.run(config, catalog.run(config, resolve_inventory(config)).product).product
    media = [m for row in _rows(articles)["figures"] for f in row for m in f["media"] if m["found"]]
    broken = [m["key"] for m in media[::9]]
    s3.faults = {key: ["503"] for key in broken}
    with pytest.raises(UnfinishedError, match="run the same command again"):
        preprocess.run(config, articles)
    pairs = preprocess.run(config, articles)
    assert pairs.state == "resumed"
    columns = [name for name in PAIRS.names if name != "part"]
    pd.testing.assert_frame_equal(_rows(pairs.product)[columns], _rows(plain["preprocess"])[columns])


def test_a_twentieth_of_all_objects_missing_is_as_many_ledger_rows_and_no_failure(
    bucket: Path, products: dict[str, Product], tmp_path: Path
) -> None:
    """Each object is one row; the other figures and articles stay, and the stages finish."""
    articles = _rows(products["ingest"]).to_dict("records")
    no_xml = {article["article_id"] for article in articles[::20]}
    pictures = {
        figure["figure_id"]: figure["media"][0]["key"]
        for article in articles
        for figure in article["figures"]
        if article["article_id"] not in no_xml and len(figure["media"]) == 1
    }
    before = products["preprocess"].ledger().to_pylist()
    lost_before = {row["id"] for row in before if row["id"].split("/")[0] not in no_xml}
    sound = sorted(set(pictures) - {pair_id.split("#")[0] for pair_id in lost_before})
    lost = {f"{figure_id}#0": pictures[figure_id] for figure_id in sound[::20]}
    shutil.copytree(bucket, tmp_path / "bucket")
    for key in (*lost.values(), *(f"{article_id}/{article_id}.xml" for article_id in no_xml)):
        (tmp_path / "bucket" / key).unlink()
    damaged = _data_stages(_config(tmp_path / "root", tmp_path / "bucket"))
    assert len(no_xml) >= 2
    assert len(lost) >= 5
    rows = damaged["ingest"].ledger().to_pylist()
    assert {row["id"] for row in rows if row["reason"] == "missing_object"} == no_xml
    rows = damaged["preprocess"].ledger().to_pylist()
    assert {row["id"] for row in rows} == lost_before | set(lost)
    assert {row["reason"] for row in rows if row["id"] in lost} == {"missing_object"}
    whole, left = _rows(products["preprocess"]), _rows(damaged["preprocess"])
    gone = whole["pair_id"].isin(lost) | whole["article_id"].isin(no_xml)
    assert left["pair_id"].tolist() == whole["pair_id"][~gone].tolist()


def test_the_whole_data_side_runs_with_source_and_root_on_s3(
    bucket: Path, products: dict[str, Product], s3: S3, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    root = s3.upload(tmp_path / "empty") + "/root"
    remote = _data_stages(_config(root, s3.upload(bucket)))
    for stage, product in products.items():
        assert product.fingerprint == remote[stage].fingerprint
        pd.testing.assert_frame_equal(_rows(product), _rows(remote[stage]))


def test_year_journal_and_type_are_judged_before_a_picture_is_fetched(
    bucket: Path, products: dict[str, Product], tmp_path: Path
) -> None:
    """The truth is in the metadata's citations: "Sample ONE. 2014; 1:0042." """
    config = _config(tmp_path, bucket)
    select = {
        "years": [2009, 2020],
        "journals": ["sample ONE", "SAMPLE biology"],
        "article_types": ["research-article"],
    }
    config = parse(config.model_dump(mode="json") | {"ingest": {"select": select}}, "test")
    versions = catalog.run(config, resolve_inventory(config)).product
    assert versions.fingerprint == products["catalog"].fingerprint
    articles = ingest.run(config, versions).product
    citations = dict(_rows(versions)[["article_id", "citation"]].itertuples(index=False))
    said = {key: (citation.split(". ")[0], int(citation.split(". ")[1][:4])) for key, citation in citations.items()}
    kept = _rows(products["ingest"])["article_id"]
    expected = {
        key: "year"
        if not 2009 <= year <= 2020
        else "journal"
        if journal not in ("Sample ONE", "Sample Biology")
        else ""
        for key, (journal, year) in ((key, said[key]) for key in kept)
    }
    ledger = articles.ledger().to_pandas().set_index("id")["reason"]
    assert set(_rows(articles)["article_id"]) == {key for key, reason in expected.items() if not reason}
    assert {key: ledger[key] for key, reason in expected.items() if reason} == {k: r for k, r in expected.items() if r}
    assert {"", "year", "journal"} == set(expected.values())
    reviews = parse(
        config.model_dump(mode="json") | {"ingest": {"select": {"article_types": ["review-article"]}}}, "test"
    )
    count = ingest.run(reviews, versions).product.manifest["counts"][0]
    assert (count["kept"], count["dropped"]["article_type"]) == (0, len(kept) + 1)  # the one without figures


def test_a_text_filter_spares_the_fetch_of_pictures_it_leaves_out(bucket: Path, s3: S3, tmp_path: Path) -> None:
    uri = s3.upload(bucket)
    config = _config(tmp_path, uri)
    config = config.model_copy(
        update={
            "preprocess": config.preprocess.model_copy(update={"select": type(config.preprocess.select)(text=("gel",))})
        }
    )
    articles = ingest.run(config, catalog.run(config, resolve_inventory(config)).product).product
    s3.gets.clear()
    pairs = preprocess.run(config, articles).product
    rows = _rows(pairs)
    assert 0 < len(rows) < 60
    assert all("gel" in (row["caption"] + " ".join(row["mentions"])).lower() for row in rows.to_dict("records"))
    count = pairs.manifest["counts"][0]
    fetched = {key for key in s3.gets if not key.endswith((".xml", ".json"))}
    assert count["dropped"]["text_filter"] + len(fetched) == count["in"]


def test_a_text_classifier_spares_the_fetch_of_pictures_it_leaves_out(bucket: Path, s3: S3, tmp_path: Path) -> None:
    fitted = fit_gel_classifier(tmp_path / "gel.onnx")
    config = _config(tmp_path / "root", s3.upload(bucket))
    select = {"select": {"classifier": {"uri": str(tmp_path / "gel.onnx"), "threshold": 0.4}}}
    config = parse(config.model_dump(mode="json") | {"preprocess": select}, "test")
    articles = ingest.run(config, catalog.run(config, resolve_inventory(config)).product).product
    figures = [figure for row in _rows(articles)["figures"] for figure in row]
    odds = fitted.predict_proba([" ".join(figure_text(figure).lower().split()) for figure in figures])[:, 1]
    wanted = {figure["figure_id"] for figure, probability in zip(figures, odds, strict=True) if probability >= 0.4}
    s3.gets.clear()
    pairs = preprocess.run(config, articles).product
    assert 0 < len(wanted) < len(figures) / 2
    left = pairs.ledger().to_pandas()
    left = left[left["reason"] == "text_classifier"]
    figure_ids = {"/".join(pair_id.split("#")[0].split("/")[:2]) for pair_id in left["id"]}
    assert figure_ids == {figure["figure_id"] for figure in figures} - wanted
    assert set(_rows(pairs)["figure_id"]) <= wanted
    fetched = {key for key in s3.gets if not key.endswith((".xml", ".json"))}
    assert len(left) + len(fetched) == pairs.manifest["counts"][0]["in"]


def test_compound_figures_are_cut_into_panels_with_their_subcaptions_but_not_under_no_derivatives(
    bucket: Path, tmp_path: Path
) -> None:
    config = _config(tmp_path, bucket)
    config = config.model_copy(update={"preprocess": config.preprocess.model_copy(update={"panels": True})})
    pairs = preprocess.run(
        config, ingest.run(config, catalog.run(config, resolve_inventory(config)).product).product
    ).product
    rows = _rows(pairs)
    counts = {count["unit"]: count for count in pairs.manifest["counts"]}
    assert counts["picture"]["kept"] == (rows["panel"] == 0).sum()
    assert counts["panel"]["kept"] == (rows["panel"] > 0).sum() > 0
    truth = Truth.load(bucket)
    uncut = {f.figure_id for a in truth.articles if a.license.endswith("ND") for f in a.figures}
    compound = {f.figure_id: f for f in truth.figures() if f.fate == "kept" and f.panels and f.figure_id not in uncut}
    cut = rows[rows["panel"] > 0].groupby("figure_id")
    assert len(compound) >= 8
    assert not uncut & set(cut.groups)
    assert not set(cut.groups) - set(compound)
    right = 0
    for figure_id, panels in cut:
        expected = compound[figure_id].panels
        assert panels["pair_id"].tolist() == [f"{panels['pair_id'].iloc[0][:-1]}{n}" for n in range(1, len(panels) + 1)]
        right += panels["panel_label"].tolist() == [panel.label for panel in expected] and all(
            panel.subcaption.split("(")[0].rstrip(". ") in text
            for panel, text in zip(expected, panels["text"], strict=True)
        )
    assert right >= 0.8 * len(compound)


def test_products_open_with_pandas_duckdb_and_datasets_though_half_of_the_articles_lack_facts(tmp_path: Path) -> None:
    import datasets
    import duckdb

    make_bucket(tmp_path / "sparse", n_articles=30, seed=5, sparse_first_half=True)
    products = _data_stages(_config(tmp_path / "root", tmp_path / "sparse"))
    for product in products.values():
        folder = product.place.local / "data"
        rows = sum(table.num_rows for table in product.scan())
        assert rows > 0
        assert len(pd.read_parquet(folder)) == rows
        assert duckdb.sql(f"select count(*) from '{folder}/*.parquet'").fetchall() == [(rows,)]
        loaded = datasets.load_dataset(
            "parquet", data_files=f"{folder}/*.parquet", split="train", cache_dir=str(tmp_path / "cache")
        )
        assert loaded.num_rows == rows


def test_real_articles_give_every_expected_figure_that_passes_the_licence(corpus: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, corpus / "bucket", select={"licenses": ["CC0", "CC BY"]})
    products = _data_stages(config)
    taken = set(_rows(products["catalog"])["article_id"])
    expected = [json.loads(line) for line in (corpus / "expected" / "figures.jsonl").read_text().splitlines()]
    expected = [figure for figure in expected if figure["pmcid_version"] in taken]
    assert len(expected) >= 60
    rows = _rows(products["preprocess"])
    found = Counter(
        (row["article_id"], " ".join(row["caption"].split()), row["media_name"]) for row in rows.to_dict("records")
    )
    missing = []
    for figure in expected:
        captions = {" ".join(figure[k].split()) for k in ("caption", "caption_without_supplementary") if k in figure}
        for name in figure["graphics"]:
            if not any(found[(figure["pmcid_version"], caption, name)] for caption in captions):
                missing.append((figure["pmcid_version"], figure["fig_id"], name))
    assert missing == []
    ledger = products["catalog"].ledger().to_pandas()
    reasons = dict(zip(ledger["id"], ledger["reason"], strict=True))
    assert reasons["PMC99000006.1"] == "retracted"
    assert reasons["PMC99000008.1"] == "manuscript"
    assert reasons["PMC99000010.1"] == "license"
    assert reasons["PMC99000002.1"] == "superseded"
