"""The sample bucket is what its truth says, by a plain walk of the folder that shares no code with its maker."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from lxml import etree
from PIL import Image

from biomedclip_ray.sample import Truth, make_bucket
from biomedclip_ray.sample.canvas import POSITIONS
from biomedclip_ray.sample.imaging import fluorescence
from biomedclip_ray.sample.plots import KINDS, compound
from biomedclip_ray.sample.truth import ARTICLE_CASES, ARTICLE_FATES, FIGURE_CASES
from biomedclip_ray.schema import Reason

BUCKET = "pmc-oa-opendata"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "bucket"
    make_bucket(folder, n_articles=40, seed=3)
    return folder


@pytest.fixture(scope="module")
def truth(bucket: Path) -> Truth:
    return Truth.load(bucket)


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


def _metadata(bucket: Path) -> dict[str, dict]:
    found = {}
    for path in sorted((bucket / "metadata").iterdir()):
        try:
            found[path.name.removesuffix(".json")] = json.loads(path.read_bytes())
        except json.JSONDecodeError:
            continue
    return found


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("a", "b", "c"))
    assert make_bucket(first, 12, seed=5) == make_bucket(second, 12, seed=5)
    make_bucket(other, 12, seed=6)
    assert _digests(first) == _digests(second)
    assert _digests(first)["truth.json"] != _digests(other)["truth.json"]


def test_a_bucket_that_is_there_is_left_as_it_is_and_another_size_replaces_it(tmp_path: Path) -> None:
    folder = tmp_path / "bucket"
    made = make_bucket(folder, 12)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert make_bucket(folder, 12) == made == Truth.load(folder)
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert make_bucket(folder, 13).n_articles == 13
    assert [path.name for path in tmp_path.iterdir()] == ["bucket"]


def test_a_folder_with_other_things_in_it_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="no sample bucket"):
        make_bucket(tmp_path, 12)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_fewer_articles_than_hold_every_case_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from 12 articles on"):
        make_bucket(tmp_path / "bucket", 11)


def test_the_smallest_bucket_holds_every_planted_case(tmp_path: Path) -> None:
    for seed in range(3):
        made = make_bucket(tmp_path / str(seed), 12, seed=seed)
        assert {article.case for article in made.articles} == {*ARTICLE_CASES, ""}
        assert {figure.case for figure in made.figures()} == {*FIGURE_CASES, ""}
        assert any(figure.panels for figure in made.figures())
        assert any(figure.figure_id.split("/")[1].startswith("samp.") for figure in made.figures())


def test_the_inventory_lists_exactly_the_metadata_objects_with_their_md5(bucket: Path) -> None:
    base = bucket / "inventory-reports" / BUCKET / "metadata"
    assert sorted(path.name for path in base.iterdir()) == ["2026-11-20T01-00Z", "data", "hive"]
    manifest = json.loads((base / "2026-11-20T01-00Z" / "manifest.json").read_text())
    assert manifest["fileSchema"] == "Bucket, Key, LastModifiedDate, ETag"
    rows = []
    for entry in manifest["files"]:
        data = (bucket / entry["key"]).read_bytes()
        assert (len(data), hashlib.md5(data).hexdigest()) == (entry["size"], entry["MD5checksum"])
        rows += list(csv.reader(gzip.decompress(data).decode().splitlines()))
    assert {row[0] for row in rows} == {BUCKET}
    metadata = {f"metadata/{path.name}": path.read_bytes() for path in (bucket / "metadata").iterdir()}
    assert {row[1]: row[3] for row in rows} == {key: hashlib.md5(data).hexdigest() for key, data in metadata.items()}
    assert len(rows) == len(metadata)


def test_a_large_inventory_has_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biomedclip_ray.sample.bucket._INVENTORY_ROWS", 5)
    made = make_bucket(tmp_path / "bucket", 12)
    base = tmp_path / "bucket" / "inventory-reports" / BUCKET / "metadata"
    files = json.loads((base / "2026-11-20T01-00Z" / "manifest.json").read_text())["files"]
    lines = [gzip.decompress((tmp_path / "bucket" / f["key"]).read_bytes()).count(b"\n") for f in files]
    assert lines == [5, 5, len(made.articles) - 10]


def test_each_article_has_the_layout_of_the_cloud_service(bucket: Path, truth: Truth) -> None:
    keys = ["pmcid", "version", "pmid", "doi", "title", "citation", "is_pmc_openaccess", "is_manuscript"]
    keys += ["is_historical_ocr", "is_retracted", "license_code", "xml_url", "pdf_url", "text_url", "media_urls"]
    folders = {path.name for path in bucket.iterdir() if path.name.startswith("PMC")}
    assert folders == {article.article_id for article in truth.articles}
    for article_id, metadata in _metadata(bucket).items():
        assert [key for key in metadata if key != "mid"] == keys
        assert f"{metadata['pmcid']}.{metadata['version']}" == article_id
        copy = (bucket / article_id / f"{article_id}.json").read_bytes()
        assert copy == (bucket / "metadata" / f"{article_id}.json").read_bytes()


def test_the_md5s_are_right_but_for_the_planted(bucket: Path, truth: Truth) -> None:
    wrong, absent = [], []
    for article_id, metadata in _metadata(bucket).items():
        for url in (metadata["xml_url"], metadata["text_url"], *metadata["media_urls"]):
            key, digest = url.removeprefix(f"s3://{BUCKET}/").split("?md5=")
            assert key.startswith(f"{article_id}/")
            if not (bucket / key).exists():
                absent.append(key)
            elif hashlib.md5((bucket / key).read_bytes()).hexdigest() != digest:
                wrong.append(key)

    def planted(case: str) -> list[str]:
        return sorted(f"{a.article_id}/{f.graphics[0]}" for a in truth.articles for f in a.figures if f.case == case)

    assert sorted(wrong) == planted("md5_mismatch") != []
    assert sorted(absent) == planted("missing_object") != []


def _numbered(article_id: str) -> tuple[str, int]:
    pmcid, _, version = article_id.partition(".")
    return pmcid, int(version)


def test_the_fates_of_the_versions_are_what_a_plain_walk_finds(bucket: Path, truth: Truth) -> None:
    newest: dict[str, int] = {}
    for path in (bucket / "metadata").iterdir():
        pmcid, version = _numbered(path.stem)
        newest[pmcid] = max(version, newest.get(pmcid, 0))
    metadata, fates = _metadata(bucket), {}
    for path in (bucket / "metadata").iterdir():
        article_id = path.name.removesuffix(".json")
        pmcid, version = _numbered(article_id)
        facts, xml = metadata.get(article_id), (bucket / article_id / f"{article_id}.xml").read_bytes()
        if version < newest[pmcid]:
            fates[article_id] = "superseded"
        elif facts is None:
            fates[article_id] = "bad_metadata"
        elif facts["is_retracted"]:
            fates[article_id] = "retracted"
        elif facts["is_manuscript"]:
            fates[article_id] = "manuscript"
        elif facts["is_historical_ocr"]:
            fates[article_id] = "historical_ocr"
        elif facts["license_code"] not in ("CC0", "CC BY", "CC BY-SA", "CC BY-ND"):
            fates[article_id] = "license"
        elif not xml:
            fates[article_id] = "empty_xml"
        else:
            root = etree.fromstring(xml, etree.XMLParser(recover=True))
            cut = not xml.rstrip().endswith(b"</article>")
            fates[article_id] = "bad_xml" if cut else "kept" if root.findall(".//fig") else "no_figures"
    assert fates == {article.article_id: article.fate for article in truth.articles}
    assert set(fates.values()) == {"kept", "superseded", *map(str, ARTICLE_FATES.values())}
    assert any(article.article_id.endswith(".10") and article.fate == "kept" for article in truth.articles)


def test_the_figures_are_what_the_xml_says(bucket: Path, truth: Truth) -> None:
    href = "{http://www.w3.org/1999/xlink}href"
    for article in truth.articles:
        if article.case in ("empty_xml", "bad_xml"):
            continue
        root = etree.parse(bucket / article.article_id / f"{article.article_id}.xml").getroot()
        figures = root.findall(".//fig")
        assert len(figures) == len(article.figures)
        for n, (fig, expected) in enumerate(zip(figures, article.figures, strict=True), start=1):
            blocks = [" ".join("".join(block.itertext()).split()) for block in fig.findall("caption/*")]
            assert " ".join(blocks) == expected.caption
            assert (fig.findtext("label") or "") == expected.label
            assert expected.figure_id == f"{article.article_id}/{fig.get('id') or f'fig-{n}'}"
            names = [graphic.get(href) for graphic in fig.iter("graphic")]
            assert bool(names) == (expected.case != "no_graphic")
            for name in expected.graphics:
                assert name in names or name.rsplit(".", 1)[0] in names
            if expected.case == "no_media":
                listed = {name.rsplit(".", 1)[0] for name in article.media} | set(article.media)
                assert not listed & set(names)


def test_figures_stand_in_paragraphs_with_text_after_them_and_in_floats_groups(bucket: Path, truth: Truth) -> None:
    places: Counter[str] = Counter()
    for article in truth.articles:
        if article.fate == "kept":
            root = etree.parse(bucket / article.article_id / f"{article.article_id}.xml").getroot()
            for fig in root.iter("fig"):
                parent = fig.getparent()
                assert parent is not None
                places[str(parent.tag)] += 1
                if parent.tag == "p":
                    assert (fig.tail or "").strip().startswith("This held for")
    assert places["p"] > 10
    assert places["sec"] > 10
    assert places["floats-group"] > 10


def test_mentions_are_the_sentences_of_the_body_that_name_the_figure(bucket: Path, truth: Truth) -> None:
    several = 0
    for article in truth.articles:
        if article.fate != "kept":
            continue
        root = etree.parse(bucket / article.article_id / f"{article.article_id}.xml").getroot()
        etree.strip_elements(root, "fig", with_tail=False)
        body = " ".join(str(root.xpath("string(body)")).split())
        for figure in article.figures:
            assert all(sentence in body for sentence in figure.mentions)
            assert bool(figure.mentions) == (figure.case != "no_id")
            several += len(figure.mentions) > 1
    assert several > 0


def test_every_kept_picture_opens_and_the_cut_ones_do_not(bucket: Path, truth: Truth) -> None:
    formats: Counter[str] = Counter()
    for article in truth.articles:
        for figure in article.figures:
            for name in figure.graphics:
                path = bucket / article.article_id / name
                if figure.fate == "truncated_image":
                    with pytest.raises(OSError, match="truncated"):
                        Image.open(path).load()
                elif figure.fate == "kept":
                    picture = Image.open(path)
                    picture.load()
                    formats[str(picture.format)] += 1
                    assert 150 < min(picture.size) <= max(picture.size) < 1000
    assert set(formats) == {"JPEG", "PNG", "TIFF", "GIF", "WEBP"}


def test_duplicates_have_the_same_bytes_in_other_articles(bucket: Path, truth: Truth) -> None:
    figures = {f.figure_id: (a.article_id, f) for a in truth.articles for f in a.figures}
    assert {pair["same_caption"] for pair in truth.duplicates} == {True, False}
    for pair in truth.duplicates:
        (one, first), (other, second) = figures[str(pair["first"])], figures[str(pair["second"])]
        assert one.split(".")[0] != other.split(".")[0]
        assert (bucket / one / first.graphics[0]).read_bytes() == (bucket / other / second.graphics[0]).read_bytes()
        assert (first.caption == second.caption) == pair["same_caption"]


def test_no_other_two_kept_pictures_are_the_same(bucket: Path, truth: Truth) -> None:
    digests: Counter[bytes] = Counter()
    for article in truth.articles:
        for figure in article.figures if article.fate == "kept" else ():
            for name in figure.graphics if figure.fate == "kept" else ():
                digests[hashlib.md5((bucket / article.article_id / name).read_bytes()).digest()] += 1
    assert sum(n - 1 for n in digests.values()) == len(truth.duplicates)


def test_the_counts_by_unit_add_up(truth: Truth) -> None:
    fates = truth.fates()
    assert sum(fates["versions"].values()) == len(truth.articles)
    assert fates["versions"]["kept"] == sum(fates["articles"].values())
    assert sum(fates["figures"].values()) == len(truth.figures())
    assert fates["pictures"]["kept"] == sum(len(f.graphics) for f in truth.figures() if f.fate == "kept")
    assert {r for unit in fates.values() for r in unit} - {"kept"} <= set(map(str, Reason))


def test_the_sparse_half_has_no_labels_dois_or_mentions(tmp_path: Path) -> None:
    made = make_bucket(tmp_path / "bucket", 12, sparse_first_half=True)
    pmcids = sorted({_numbered(article.article_id)[0] for article in made.articles})
    for article in made.articles:
        first = _numbered(article.article_id)[0] in pmcids[:6]
        assert (article.doi == "") == first
        assert all((figure.label == "") == first for figure in article.figures)
        assert not any(figure.mentions for figure in article.figures) or not first
    assert any(metadata["doi"] is None for metadata in _metadata(tmp_path / "bucket").values())


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_kind_draws_varied_pictures_whose_first_words_tell_them_apart(kind: str) -> None:
    rng = np.random.default_rng(11)
    drawn = [KINDS[kind](rng, 320, 260) for _ in range(24)]
    assert all(picture.size == (320, 260) and picture.mode == "RGB" for picture, _ in drawn)
    assert all(np.asarray(picture).std() > 8 for picture, _ in drawn)
    assert len({sentence for _, sentence in drawn}) >= 18
    assert max(len(sentence.split()) for _, sentence in drawn) <= 25


def test_a_caption_says_the_colour_that_is_drawn() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        picture, sentence = fluorescence(rng, 200, 200)
        red, green, blue = np.asarray(picture, dtype=float).reshape(-1, 3).sum(0)
        if "green" in sentence.lower() and "blue" not in sentence:
            assert green > 1.5 * max(red, blue)
        elif "red" in sentence.lower().split() and "blue" not in sentence:
            assert red > 1.5 * max(green, blue)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_panels_lie_in_their_boxes_and_white_between_them(count: int) -> None:
    picture, boxes, words = compound(
        np.random.default_rng(count), ["gel", "micrograph", "histology", "radiograph"][:count]
    )
    pixels = np.asarray(picture.convert("L")).copy()
    for x0, y0, x1, y1 in boxes:
        assert 0 < x0 < x1 < 1
        assert 0 < y0 < y1 < 1
        left, top, right, bottom = (
            round(v) for v in (x0 * picture.width, y0 * picture.height, x1 * picture.width, y1 * picture.height)
        )
        assert pixels[top:bottom, left:right].std() > 5
        pixels[top:bottom, left:right] = 255
    assert (pixels == 255).all()
    assert len(words) == len(boxes) == count


def test_compound_captions_name_their_panels(truth: Truth) -> None:
    compounds = [figure for figure in truth.figures() if figure.panels]
    assert 0.1 < len(compounds) / len(truth.figures()) < 0.2
    for figure in compounds:
        assert [panel.label for panel in figure.panels] == list("ABCD"[: len(figure.panels)])
        assert all(f"({panel.label}) {panel.subcaption}" in figure.caption for panel in figure.panels)


def test_positions_are_words_of_the_captions() -> None:
    rng = np.random.default_rng(0)
    sentences = [KINDS["heat_map"](rng, 200, 200)[1] for _ in range(60)]
    assert all(any(f"block in the {where}" in sentence for sentence in sentences) for where in POSITIONS)
