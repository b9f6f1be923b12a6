"""A generated PMC bucket: the whole program can be tried without a network, and its truth is known to the last figure.

The layout is the cloud service's own (a folder per article version, `metadata/` copies, an inventory); the figures are
drawn (`drawing.py`, `drawing_plots.py`), the articles written (`words.py`), and a known share is bad in every way
that real data is bad. The same seed gives the same bytes; 600 articles with about 2,400 figures take about 20 s of one
core. `truth.json` and, last of all, `sample.json` lie in the bucket's root, outside every article's prefix.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from biomedclip_ray.sample import words
from biomedclip_ray.sample.canvas import pick
from biomedclip_ray.sample.plots import KINDS, compound
from biomedclip_ray.sample.truth import (
    ARTICLE_CASES,
    ARTICLE_FATES,
    FIGURE_CASES,
    FIGURE_FATES,
    ArticleTruth,
    FigureTruth,
    PanelTruth,
    Truth,
)
from biomedclip_ray.sample.words import FigureXml, plain
from biomedclip_ray.schema import Reason, figure_ids

VERSION = 3
"""Raised with any change that alters the bytes of a bucket."""
BUCKET = "pmc-oa-opendata"
INVENTORY_DATE = "2026-11-20T01-00Z"
MINIMUM = 12
"""Articles below which not every planted case would fit."""
COMPOUND_SHARE = 0.15
_FIRST_PMCID = 98_000_001
_INVENTORY_ROWS = 400
_SIZES = ((400, 300), (320, 400), (480, 320), (360, 360), (500, 340), (300, 380))

_STYLES = ("plain", "plos", "springer", "plain", "plain", "plain")
_FORMATS = {"png": "PNG", "tiff": "TIFF", "gif": "GIF", "webp": "WEBP"}


def make_bucket(folder: Path | str, n_articles: int = 600, seed: int = 0, sparse_first_half: bool = False) -> Truth:
    """Write a bucket of `n_articles` articles into `folder` and return its truth.

    It is written beside the folder and moved there when whole; a bucket that is there with the same parameters is left
    as it is. `sparse_first_half`: the first half of the articles has neither labels nor DOIs nor mentions.

    Raises:
        ValueError: fewer than 12 articles cannot hold every planted case.
        FileExistsError: `folder` holds something that is no sample bucket.
    """
    if n_articles < MINIMUM:
        raise ValueError(
            f"n_articles={n_articles}: a sample bucket holds every planted case from {MINIMUM} articles on"
        )
    folder = Path(folder)
    parameters = {"version": VERSION, "n_articles": n_articles, "seed": seed, "sparse_first_half": sparse_first_half}
    marker = folder / "sample.json"
    if marker.is_file() and json.loads(marker.read_text()) == parameters:
        return Truth.load(folder)
    if folder.exists() and not marker.is_file() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and no sample bucket; name another folder or empty it")
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    truth = _Maker(partial, n_articles, seed, sparse_first_half).write()
    (partial / "truth.json").write_text(json.dumps(asdict(truth)))
    (partial / "sample.json").write_text(json.dumps(parameters))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return truth


def _counted(cases: dict[str, float], total: int) -> list[str]:
    return [case for case, share in cases.items() for _ in range(max(1, round(share * total)))]


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _encode(image: Image.Image, fmt: str) -> bytes:
    stream = io.BytesIO()
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 90},
        "TIFF": {"compression": "tiff_deflate"},
        "WEBP": {"quality": 90, "method": 2},
    }
    (image.quantize(128) if fmt == "GIF" else image).save(stream, fmt, **options.get(fmt, {}))
    return stream.getvalue()


@dataclass
class _Drawn:
    """A figure as drawn: image, kind, the sentence of what is seen, the rest of the caption (markup), its panels."""

    image: Image.Image
    kind: str
    sentence: str
    rest: str
    panels: list[PanelTruth]


class _Maker:
    """One bucket being written. Cases are dealt out first; every figure has a random stream of its own, so that a
    duplicate is made by drawing the other figure again."""

    def __init__(self, folder: Path, n_articles: int, seed: int, sparse: bool) -> None:
        self.folder, self.n, self.seed, self.sparse = folder, n_articles, seed, sparse
        rng = np.random.default_rng([seed, 0])
        roles = _counted(ARTICLE_CASES, n_articles)
        roles += [""] * (n_articles - len(roles))
        self.roles = [roles[i] for i in rng.permutation(n_articles)]
        whole = [role not in ARTICLE_FATES for role in self.roles]
        some = (6,) if n_articles < 40 else (2, 3, 4, 4, 5, 5, 6, 6)  # a small bucket must still hold every case
        self.figures = [
            0 if role == "no_figures" else pick(rng, some) if kept else 2
            for role, kept in zip(self.roles, whole, strict=True)
        ]
        places = [(i, k) for i in range(n_articles) if whole[i] for k in range(self.figures[i])]
        places = [places[i] for i in rng.permutation(len(places))]
        cases = _counted(FIGURE_CASES, len(places))
        self.cases = dict(zip(places, cases, strict=False))
        free = places[len(cases) :]
        self.source: dict[tuple[int, int], tuple[int, int]] = {}
        for place, case in self.cases.items():
            if case.startswith("duplicate"):
                self.source[place] = next(other for other in free if other[0] != place[0])
                free.remove(self.source[place])
        share = round(COMPOUND_SHARE * len(places))
        self.compounds = set([place for place in free if place not in self.source.values()][: max(1, share)])
        self.ranks = {index: rank for rank, index in enumerate(np.flatnonzero(whole).tolist())}
        self.rows: list[tuple[str, str, str, str]] = []
        self.ids: dict[tuple[int, int], str] = {}

    def write(self) -> Truth:
        (self.folder / "metadata").mkdir()
        articles = [version for index in range(self.n) for version in self._article(index)]
        self._inventory()
        duplicates: list[dict[str, str | bool]] = [
            {"first": self.ids[first], "second": self.ids[second], "same_caption": "same" in self.cases[second]}
            for second, first in sorted(self.source.items())
        ]
        return Truth(self.n, self.seed, self.sparse, articles, duplicates)

    def _article(self, index: int) -> list[ArticleTruth]:
        """All versions of one article; those but the newest are superseded and hold the same figures."""
        role = self.roles[index]
        versions = {"manuscript_superseded": (1, 2), "numeric_versions": (2, 10)}.get(role, (1,))
        return [self._version(index, version, version == versions[-1]) for version in versions]

    def _version(self, index: int, version: int, newest: bool) -> ArticleTruth:
        rng = np.random.default_rng([self.seed, 1, index])
        role, number, sparse = self.roles[index], _FIRST_PMCID + index, self.sparse and index < self.n // 2
        pmcid, article_id = f"PMC{number}", f"PMC{number}.{version}"
        manuscript = role == "manuscript_alone" or (role == "manuscript_superseded" and not newest)
        license_code = {"no_derivatives": "CC BY-ND", "non_commercial": "CC BY-NC-ND"}.get(
            role, pick(rng, ("CC BY",) * 8 + ("CC0", "CC BY-SA"))
        )
        facts = {
            "pmcid": pmcid,
            "version": str(version),
            "doi": "" if sparse else f"10.5555/sample.{number}",
            "pmid": str(number - 60_000_000),
            "title": ("" if newest else "[Earlier version] ") + words.title(rng),
            "journal": pick(rng, words.JOURNALS),
            "year": str(int(rng.integers(2004, 2027))),
            "license": license_code,
        }
        rank = self.ranks.get(index, 0)
        style, floats = _STYLES[rank % len(_STYLES)], rank % 4 == 3
        word = pick(rng, ("Figure", "Figure", "Figure", "Fig."))
        media: dict[str, tuple[bytes | None, str]] = {}
        drawn, written = [], []
        for k in range(self.figures[index]):
            figure, truth = self._figure(index, k, style, f"{word} {k + 1}", media)
            if sparse:
                figure.label = truth.label = ""
            elif figure.xml_id:
                figure.mentions = [words.mention(rng, figure)]
            drawn.append(truth)
            written.append(figure)
        pair = [f for f in written if f.xml_id][:2]
        together = ""
        if len(pair) == 2 and not sparse and rank % 3 == 0:
            ids, numbers = " ".join(str(f.xml_id) for f in pair), [f.label.split()[-1] for f in pair]
            link = f'<xref ref-type="fig" rid="{ids}">Figures {numbers[0]} and {numbers[1]}</xref>'
            together = f"Both observations ({link}) were replicated."
        for figure_id, truth, figure in zip(
            figure_ids(article_id, [f.xml_id for f in written]), drawn, written, strict=True
        ):
            shared = [together] if together and figure in pair else []
            truth.figure_id, truth.mentions = figure_id, [plain(m) for m in (*figure.mentions, *shared)]
        if newest:
            self.ids.update({(index, k): truth.figure_id for k, truth in enumerate(drawn)})
        if rng.random() < 0.05:
            data = gzip.compress(facts["title"].encode(), mtime=0)
            media[f"sample-{number}-s001.csv.gz"] = (data, _md5(data))
        xml = words.article_xml(rng, facts, written, floats, together)
        xml = {"empty_xml": b"", "bad_xml": xml[: len(xml) // 2]}.get(role, xml)
        flags = {
            "is_pmc_openaccess": not manuscript,
            "is_manuscript": manuscript,
            "is_historical_ocr": role == "historical_ocr",
            "is_retracted": role == "retracted",
            "license_code": "TDM" if manuscript else license_code,
        }
        self._put(article_id, facts, flags, xml, drawn, media, role == "bad_metadata")
        fate = str(ARTICLE_FATES.get(role, "kept")) if newest else str(Reason.SUPERSEDED)
        code = str(flags["license_code"])
        return ArticleTruth(article_id, fate, role, code, facts["doi"], list(media), drawn)

    def _draw(self, index: int, k: int) -> _Drawn:
        rng = np.random.default_rng([self.seed, 2, index, k])
        names = list(KINDS)
        kind = pick(rng, names)
        if (index, k) not in self.compounds:
            image, sentence = KINDS[kind](rng, *pick(rng, _SIZES))
            return _Drawn(image, kind, sentence, words.tail(rng, kind), [])
        count = int(rng.integers(2, 5))
        kinds = [kind] * count if rng.random() < 0.5 else [names[i] for i in rng.permutation(len(names))[:count]]
        image, boxes, shown = compound(rng, kinds)
        panels = [
            PanelTruth(letter, box, f"{text}.", name)
            for letter, box, text, name in zip("ABCD", boxes, shown, kinds, strict=False)
        ]
        lead = pick(rng, ("Effects of treatment", "Comparison of groups", "Overview of the findings"))
        rest = " ".join(f"<bold>({p.label})</bold> {p.subcaption}" for p in panels)
        whole = kind if len(set(kinds)) == 1 else "compound"
        return _Drawn(image, whole, lead, f"{rest} {words.tail(rng, kind)}", panels)

    def _figure(
        self, index: int, k: int, style: str, label: str, media: dict[str, tuple[bytes | None, str]]
    ) -> tuple[FigureXml, FigureTruth]:
        """Draw one figure, put its files into `media` (name -> bytes or None where the object is absent, md5)."""
        case, number = self.cases.get((index, k), ""), _FIRST_PMCID + index
        drawn = self._draw(*self.source.get((index, k), (index, k)))
        own = np.random.default_rng([self.seed, 3, index, k])
        if case == "duplicate_other_caption":
            drawn.sentence = f"Reference image of an earlier study: {drawn.sentence[0].lower()}{drawn.sentence[1:]}"
            drawn.rest = words.tail(own, drawn.kind)
        xml_id, stem = {
            "plos": (f"samp.{number}.g{k + 1:03}",) * 2,
            "springer": (f"Fig{k + 1}", f"{number}_2026_Fig{k + 1}_HTML"),
        }.get(style, (f"F{k + 1}", f"sample-{number}-g{k + 1:03}"))
        extension = case if case in _FORMATS else "jpg"
        name = f"{stem}.{extension}"
        data = _encode(drawn.image, _FORMATS.get(case, "JPEG"))
        if case == "truncated_image":
            data = data[: len(data) * 3 // 5]
        digest = _md5(data + b"?") if case == "md5_mismatch" else _md5(data)
        if case not in ("no_media", "no_graphic"):
            media[name] = (None if case == "missing_object" else data, digest)
        graphics: list[str | tuple[str, str]] = [name if style == "springer" or case == "with_extension" else stem]
        chosen = [name]
        if case in ("thumbnail", "alternatives"):
            small = drawn.image.copy()
            small.thumbnail((100, 100))
            thumb = _encode(small, "GIF")
            media[f"{stem}.gif"] = (thumb, _md5(thumb))
            graphics = [(name, f"{stem}.gif")] if case == "alternatives" else graphics
        if case == "two_graphics":
            second = _encode(KINDS[drawn.kind](own, 360, 300)[0], "JPEG")
            media[f"{stem}b.jpg"] = (second, _md5(second))
            graphics.append(f"{stem}b")
            chosen.append(f"{stem}b.jpg")
        if case == "no_graphic":
            graphics = []
        titled = own.random() < 0.4
        head = f"{drawn.sentence}."
        head_xml, body = (head, drawn.rest) if titled else ("", f"{head} {drawn.rest}")
        if case == "no_caption":
            head_xml = body = ""
        figure = FigureXml(None if case == "no_id" else xml_id, label, head_xml, body, graphics, k % 3 == 0)
        fate = str(FIGURE_FATES.get(case, "kept"))
        chosen = [] if case in ("no_media", "no_graphic") else chosen
        caption = plain(f"{head_xml} {body}")
        return figure, FigureTruth("", label, caption, drawn.kind, fate, case, chosen, [], drawn.panels)

    def _put(
        self,
        article_id: str,
        facts: dict[str, str],
        flags: dict[str, bool | str],
        xml: bytes,
        figures: list[FigureTruth],
        media: dict[str, tuple[bytes | None, str]],
        broken: bool,
    ) -> None:
        """Write one article version's objects and remember its line of the inventory."""
        place = self.folder / article_id
        place.mkdir()
        legends = [f"{figure.label}\n\n{figure.caption}".strip() for figure in figures]
        text = "\n\n".join((facts["title"], *legends)).encode()
        objects = {f"{article_id}.xml": (xml, _md5(xml)), f"{article_id}.txt": (text, _md5(text)), **media}
        urls = {name: f"s3://{BUCKET}/{article_id}/{name}?md5={digest}" for name, (_, digest) in objects.items()}
        metadata = {
            "pmcid": facts["pmcid"],
            "version": int(facts["version"]),
            "pmid": int(facts["pmid"]),
            "doi": facts["doi"] or None,
            **({"mid": f"NIHMS{facts['pmid']}"} if flags["is_manuscript"] else {}),
            "title": facts["title"],
            "citation": f"{facts['journal']}. {facts['year']}; 1:{facts['pmid'][-4:]}.",
            **flags,
            "xml_url": urls[f"{article_id}.xml"],
            "pdf_url": None,
            "text_url": urls[f"{article_id}.txt"],
            "media_urls": [urls[name] for name in media],
        }
        record = json.dumps(metadata, indent=2).encode()
        record = record[: len(record) // 3] if broken else record
        for name, (data, _) in objects.items():
            if data is not None:
                (place / name).write_bytes(data)
        for path in (place / f"{article_id}.json", self.folder / "metadata" / f"{article_id}.json"):
            path.write_bytes(record)
        day = int(facts["pmid"]) % 28 + 1
        self.rows.append((BUCKET, f"metadata/{article_id}.json", f"2026-10-{day:02}T09:30:00.000Z", _md5(record)))

    def _inventory(self) -> None:
        """The inventory as S3 writes it: a dated manifest, gzip CSV without header under data/, and hive/ beside."""
        base = f"inventory-reports/{BUCKET}/metadata"
        hive = self.folder / base / "hive" / f"dt={INVENTORY_DATE.replace('T', '-').removesuffix('Z')}"
        for place in (self.folder / base / "data", self.folder / base / INVENTORY_DATE, hive):
            place.mkdir(parents=True)
        rows, files = sorted(self.rows, key=lambda row: row[1]), []
        for start in range(0, len(rows), _INVENTORY_ROWS):
            text = io.StringIO()
            csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(
                rows[start : start + _INVENTORY_ROWS]
            )
            data = gzip.compress(text.getvalue().encode(), mtime=0)
            key = f"{base}/data/{uuid.uuid5(uuid.NAMESPACE_OID, text.getvalue())}.csv.gz"
            (self.folder / key).write_bytes(data)
            files.append({"key": key, "size": len(data), "MD5checksum": _md5(data)})
        manifest = {
            "sourceBucket": BUCKET,
            "destinationBucket": f"arn:aws:s3:::{BUCKET}",
            "version": "2016-11-30",
            "creationTimestamp": "1795136400000",
            "fileFormat": "CSV",
            "fileSchema": "Bucket, Key, LastModifiedDate, ETag",
            "files": files,
        }
        (self.folder / base / INVENTORY_DATE / "manifest.json").write_text(json.dumps(manifest, indent=2))
        (hive / "symlink.txt").write_text("".join(f"s3://{BUCKET}/{entry['key']}\n" for entry in files))
