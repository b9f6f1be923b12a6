"""The report over a small root whose products are real files, written as the stages write them."""

from __future__ import annotations

import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from biomedclip_ray.clip.vectors import to_column
from biomedclip_ray.config import STAGES, Config
from biomedclip_ray.report import report, svg
from biomedclip_ray.schema import CORPUS, PAIRS, Reason, index_schema
from biomedclip_ray.search import build
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.ledger import Count, Ledger
from biomedclip_ray.store.parquet import conform
from biomedclip_ray.store.product import Product

KINDS = ("gel", "micrograph", "radiograph")
PAIRS_PER_PART = 15
DIMENSIONS = 8


class Page(HTMLParser):
    """Collects what a browser would load, the text, and the images in the framed results."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.right = 0
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attributes)
        self.loads += [value for name in ("src", "href", "srcset", "data") if (value := found.get(name))]
        self.right += found.get("class") == "right"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def jpeg(shade: int, side: int = 300) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (side, side // 2), (shade, 120, 255 - shade)).save(sink, "JPEG")
    return sink.getvalue()


def finish(root: str, stage: str, counts: list[Count], files: dict[str, bytes] | None = None) -> Product:
    product = Product.plan(root, stage, 1, {"made_by": "test"}, [])
    with attempt(product, 0) as current:
        for name, data in (files or {}).items():
            product.place.write(name, data)
        current.finish(counts)
    return product


def plan_pairs(root: str | Path) -> Product:
    return Product.plan(str(root), "preprocess", 1, {"short_side": 384}, [])


def plan_embed(root: str | Path) -> Product:
    return Product.plan(str(root), "embed", 1, {}, [])


def pairs_product(root: str) -> Product:
    product = plan_pairs(root)
    with attempt(product, 2) as current:
        for part in range(2):
            rows = []
            for i in range(PAIRS_PER_PART):
                kind = KINDS[i % 3]
                text = f"A {kind} with {i} bands of part {part}."
                rows.append(
                    dict.fromkeys(PAIRS.names)
                    | {"pair_id": f"PMC{part}.1/F{i}#0", "article_id": f"PMC{part}.1", "label": f"Figure {i}"}
                    | {"text": text, "caption": text, "figure_kind": kind, "image": jpeg(10 * i), "license": "CC BY"}
                )
            rows[0] |= {"text": "<script>alert(1)</script> & more", "license": None, "label": None}
            ledger = Ledger("preprocess")
            ledger.drop("picture", f"PMC{part}.1/F99#0", Reason.TRUNCATED_IMAGE)
            ledger.count("picture", PAIRS_PER_PART + 1, PAIRS_PER_PART)
            counts = {"picture": (PAIRS_PER_PART + 1, PAIRS_PER_PART)}
            current.write_part(
                part, conform(pa.Table.from_pylist(rows, PAIRS), PAIRS), ledger.table(), counts, 123 << 20
            )
        current.finish_parts(0.0)
    return product


def corpus_product(root: str) -> Product:
    """27 of the 30 pairs are kept: two in three for training."""
    product = Product.plan(root, "curate", 1, {}, [])
    with attempt(product, 2) as current:
        for part in range(2):
            rows = [
                {
                    "pair_id": f"PMC{part}.1/F{i}#0",
                    "split": "test" if i % 3 == 0 else "train",
                    "group": i,
                    "kept": i > part,
                }
                for i in range(PAIRS_PER_PART)
            ]
            table = conform(pa.Table.from_pylist([row | {"reason": None} for row in rows], CORPUS), CORPUS)
            current.write_part(part, table, Ledger("curate").table(), {"pair": (PAIRS_PER_PART, PAIRS_PER_PART)})
        near = {"bits": 4, "pictures": 1234, "near_hashes": 7, "pictures_read": 9, "confirmed": 5, "crowded": 0}
        leakage = {"articles": 0, "groups": 0, "pictures": 0, "near_pairs": 0}
        current.finish_parts(0.0, {"near": near, "leakage": leakage, "shared_texts": 3})
    return product


def embed_product(root: str, wrong: int | None = None) -> Product:
    """30 test pairs; each caption finds its own image first, but pair `wrong`, whose image is the opposite."""
    schema = pa.schema([field for field in index_schema(DIMENSIONS) if field.name not in ("x", "y")])
    product = plan_embed(root)
    generator = np.random.default_rng(0)
    with attempt(product, 2) as current:
        for part in range(2):
            vectors = generator.normal(size=(PAIRS_PER_PART, DIMENSIONS)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            pictures = vectors.copy()
            if wrong is not None and part == 0:
                pictures[wrong] *= -1
            columns: dict[str, Any] = {name: [None] * PAIRS_PER_PART for name in schema.names}
            columns |= {
                "pair_id": [f"PMC{part}.1/F{i}#0" for i in range(PAIRS_PER_PART)],
                "caption": [f"Caption {part}-{i}" for i in range(PAIRS_PER_PART)],
                "figure_kind": [KINDS[i % 3] for i in range(PAIRS_PER_PART)],
                "split": ["test"] * PAIRS_PER_PART,
                "thumbnail": [jpeg(i, 64) for i in range(PAIRS_PER_PART)],
                "text_vector": to_column(vectors),
                "image_vector": to_column(pictures),
            }
            table = conform(pa.table(columns), schema)
            current.write_part(part, table, Ledger("embed").table(), {"pair": (PAIRS_PER_PART, PAIRS_PER_PART)})
        fragments = build.write_rows(product.place, current.scan(), schema)
        build.commit(product.place, fragments, schema, 2 * PAIRS_PER_PART)
        current.finish_parts(0.0)
    return product


def share(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "chance": 0.025}


EVALUATION = {
    "split": "test",
    "n": 400,
    "retrieval": {
        way: {"recall@1": share(0.3), "recall@10": share(value), "median_rank": share(3.0)}
        for way, value in (("text_to_image", 0.8125), ("image_to_text", 0.7875))
    }
    | {
        "control_shuffled": {
            way: {"recall@1": share(0.2), "recall@10": share(0.0271), "median_rank": share(201.0)}
            for way in ("text_to_image", "image_to_text")
        }
    }
    | {
        reading: {way: {"recall@10": share(0.8375)} for way in ("text_to_image", "image_to_text")}
        for reading in ("same_image", "same_text")
    },
    "slices": {
        "image": {
            "panel": {"n": 37, "of": 437}
            | {way: {"recall@10": share(0.4321)} for way in ("text_to_image", "image_to_text")}
        }
    },
    "by_kind": {
        kind: {"n": 100 + i, "text_to_image": {"recall@10": share(0.5)}, "image_to_text": {"recall@10": share(0.6)}}
        for i, kind in enumerate(KINDS)
    }
    | {"signal": {"n": 8, "text_to_image": {"recall@10": share(1.0)}, "image_to_text": {"recall@10": share(1.0)}}},
}


def metrics(last: float, batch: int = 128) -> bytes:
    """100 steps from ln(batch) to `last`."""
    chance = math.log(batch)
    lines = [
        {
            "step": step,
            "loss": chance + (last - chance) * step / 100,
            "chance_loss": chance,
            "lr": 1e-3,
            "grad_norm": math.nan if step in (1, 100) else step / 10,
            "data_wait_share": 0.0,
        }
        for step in range(1, 101)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def train_product(root: str, last: float) -> Product:
    config = Config(root=root).model_copy(deep=True)
    product = Product.plan(root, "train", 1, {"train": config.train.model_dump(mode="json") | {"batch": 128}}, [])
    with attempt(product, 0) as current:
        product.place.write("metrics.jsonl", metrics(last))
        validation = {step: {"n": 9, "text_to_image": step / 100, "image_to_text": step / 200} for step in (100, 9)}
        current.finish([], facts={"starts": {"image": "random", "text": "random"}, "validation": validation})
    return product


def record(root: Path, products: list[Product]) -> None:
    """run.json as the workflow writes it."""
    stages = [
        {
            "name": product.stage,
            "state": "ran",
            "product": product.uri,
            "seconds": 75.2,
            "peak_rss": product.manifest["peak_rss"],
            "counts": product.manifest["counts"],
        }
        for product in sorted(products, key=lambda product: STAGES.index(product.stage))
    ]
    config = Config(root=str(root)).model_dump(mode="json")
    run = {"started": "2026-11-25T08:00:00Z", "updated": "2026-11-25T08:05:00Z", "inventory": "2026-11-20T01-00Z"}
    (root / "run.json").write_text(json.dumps(run | {"stages": stages, "config": config}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    where = str(tmp_path)
    catalog = Count("article_version", 600, 550, {"license": 30, "superseded": 20})
    products = [
        finish(where, "catalog", [catalog]),
        pairs_product(where),
        corpus_product(where),
        train_product(where, last=1.0),
        finish(where, "evaluate", [], {"evaluation.json": json.dumps(EVALUATION).encode()}),
        embed_product(where, wrong=0),
    ]
    record(tmp_path, products)
    return tmp_path


@pytest.fixture
def page(root: Path) -> Page:
    report.write_report(str(root))
    return Page((root / "report.html").read_text())


def test_the_report_is_one_file_without_script_and_loads_nothing_from_elsewhere(page: Page) -> None:
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert len(page.loads) >= report.GRID_PAIRS + report.QUERIES * report.RESULTS
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in page.loads)


def test_the_funnel_gives_each_unit_and_each_reason_with_its_sentence(page: Page) -> None:
    assert "article version catalog 550 of 600 · 91.7% 30 source.select.licenses does not allow" in page.text
    assert "20 a newer version of the article exists" in page.text
    assert "picture preprocess 30 of 32 · 93.8% 2 the image ends early" in page.text


def test_text_of_articles_is_shown_and_never_run(root: Path) -> None:
    report.write_report(str(root))
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in (root / "report.html").read_text()


def test_the_curve_carries_the_line_of_chance(page: Page) -> None:
    assert "chance loss: ln(128) = 4.85" in page.text
    assert "100 steps of 128 pairs; the loss went from 4.81 to 1.08" in page.text
    assert "has learnt next to nothing" not in page.text
    assert "Before the first step the towers were: image random, text random." in page.text


def test_a_loss_that_stays_at_chance_is_said_in_words(tmp_path: Path) -> None:
    record(tmp_path, [train_product(str(tmp_path), last=4.84)])
    report.write_report(str(tmp_path))
    assert "has learnt next to nothing" in Page((tmp_path / "report.html").read_text()).text


def test_the_curve_has_a_point_for_each_logged_step(page: Page, root: Path) -> None:
    line = re.search(r'<polyline class="line" points="([^"]+)"', (root / "report.html").read_text())
    assert line is not None
    points = [tuple(map(float, point.split(","))) for point in line[1].split()]
    assert len(points) == 100
    assert points == sorted(points), "the loss falls at each step: x and y of the SVG both grow"


def test_what_else_was_measured_in_training_has_a_curve_of_its_own(page: Page, root: Path) -> None:
    for words in (
        "recall@10 of the validation split 0.75 at the end",  # the mean of both ways, by step and not as text
        "learning rate 0.001 at the end",
        "gradient norm 9.9 at the end",  # what is not finite has no point
        "share of a step spent waiting for data 0 at the end",
    ):
        assert words in page.text
    assert "logit scale" not in page.text
    curves = re.findall(r'viewBox="0 0 340 150".*?class="line" points="([^"]+)"', (root / "report.html").read_text())
    assert [len(points.split()) for points in curves] == [2, 100, 98, 100]


def test_splits_and_the_search_for_leaks_are_told(page: Page) -> None:
    assert "split pairs kept train 19 validation 0 test 8" in page.text
    assert "Among 1,234 different files 7 pairs have hashes that differ in at most 4 of 64 bits" in page.text
    assert "show the same image in 5 of them" in page.text
    assert "Kept in more than one split: 0 articles, 0 groups, 0 pictures, 0 near pairs." in page.text
    assert "under different images: 3." in page.text


def test_recall_stands_beside_interval_chance_and_shuffled_control(page: Page) -> None:
    assert "text → image, recall@10 81.2% 71.2% – 91.2% 2.50% 32.5× 2.71%" in page.text
    assert "image → text, recall@10 78.8% 68.8% – 88.8% 2.50% 31.5× 2.71%" in page.text
    assert "text → image, recall@10, same text 83.8% 73.8% – 93.8%" in page.text
    assert "whole or panel panel 37 437 43.2% 33.2% – 53.2% 43.2% 33.2% – 53.2%" in page.text
    assert "micrograph 101 50.0% 2.50% 60.0% 2.50%" in page.text
    assert "signal 8 – 2.50% – 2.50%" in page.text, "a perfect figure that could not have been another is not shown"


def test_the_grid_takes_each_kind_in_turn(root: Path) -> None:
    shown = list(report._grid(plan_pairs(root)))
    assert len(shown) == report.GRID_PAIRS
    assert [pair["figure_kind"] for pair in shown[:6]] == [*KINDS, *KINDS]
    assert [pair["pair_id"] for pair in shown[:3]] == ["PMC0.1/F0#0", "PMC0.1/F1#0", "PMC0.1/F2#0"]


def test_every_query_marks_its_own_picture_and_one_that_is_far_down_stands_last_with_its_rank(root: Path) -> None:
    found = report._queries(plan_embed(root), "test")
    assert found["pool"] == 2 * PAIRS_PER_PART
    assert len(found["queries"]) == report.QUERIES
    assert [query.rank for query in found["queries"][1:]] == [1] * 9
    first = found["queries"][0]
    assert (first.caption, first.rank) == ("Caption 0-0", 30)
    assert [result["right"] for result in first.results] == [False] * report.RESULTS + [True]
    assert first.results[-1]["score"] == pytest.approx(-1.0)


def test_the_page_frames_one_picture_a_query(page: Page) -> None:
    assert page.right == report.QUERIES


def test_pictures_are_shrunk_and_a_missing_one_is_none() -> None:
    uri = report.image_uri(jpeg(0, side=1000))
    assert uri is not None
    assert len(uri) < 8_000
    assert report.image_uri(None) is None


def test_a_run_that_ended_early_says_what_to_run(tmp_path: Path) -> None:
    record(tmp_path, [finish(str(tmp_path), "catalog", [Count("article version", 1, 1)])])
    report.write_report(str(tmp_path))
    text = Page((tmp_path / "report.html").read_text()).text
    for stage in ("preprocess", "train", "evaluate", "embed"):
        assert f"run the workflow to {stage} ." in text


def test_an_index_without_the_split_says_so(root: Path) -> None:
    assert report._queries(plan_embed(root), "validation") == {"split": "validation", "pool": 0, "queries": []}


def test_a_root_that_was_moved_gives_the_same_report(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    moved = tmp_path_factory.mktemp("elsewhere") / "root"
    root.rename(moved)
    report.write_report(str(moved))
    page = Page((moved / "report.html").read_text())
    assert page.right == report.QUERIES
    assert str(moved) in page.text


def test_the_report_acknowledges_the_library_and_counts_licences(page: Page) -> None:
    assert "courtesy of the U.S. National Library of Medicine (NLM)" in page.text
    assert "does not show the most current and accurate data available from NLM" in page.text
    assert "licence of the pair pairs CC BY 28 unknown 2" in page.text


def test_the_report_can_be_written_elsewhere_and_needs_a_run(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    assert report.write_report(str(root), out) == str(out)
    assert out.stat().st_size > 100_000
    with pytest.raises(FileNotFoundError):
        report.write_report(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("top", "expected"),
    [(5.1, [0, 2, 4]), (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (750.0, [0, 200, 400, 600]), (0.03, [0, 0.01, 0.02, 0.03])],
)
def test_ticks_are_round_and_stay_inside(top: float, expected: list[float]) -> None:
    assert svg.ticks(top) == expected


def test_a_long_curve_is_thinned_to_means_and_keeps_its_last_point() -> None:
    points = [(float(i), float(i % 2)) for i in range(60_000)]
    thinned = svg.thin(points)
    assert len(thinned) == 601
    assert thinned[0] == (49.5, 0.5)
    assert thinned[-1] == points[-1]


@pytest.mark.parametrize(
    ("value", "text"), [(0.9876, "98.8%"), (0.025, "2.50%"), (0.00012, "0.0120%"), (0.0, "0.00%"), (1.0, "100.0%")]
)
def test_shares_keep_three_figures(value: float, text: str) -> None:
    assert report.share_text(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(3.21, "3.2 s"), (75, "1 min 15 s"), (7260, "2 h 1 min")])
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert report.duration_text(seconds) == text
