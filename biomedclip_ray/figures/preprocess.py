"""Stage preprocess: articles and media -> one row for each pair of an image and its text.

Media pass through memory once: threads fetch ahead while the task decodes, checks, resizes and encodes. Originals are
not stored. Of an article that has changed since the parent only images whose files have changed are read. Alternatives
of an image are tried in order until one decodes; an image that none gives is one ledger row.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from biomedclip_ray.config import Config, ConfigError, Preprocess, Source
from biomedclip_ray.figures.clip_kinds import bundle_id, name_kinds
from biomedclip_ray.figures.pairs import may_be_cut, panel_pairs, renewed, whole_pair
from biomedclip_ray.figures.select import Classifier, classifier_sha256, left_out, load_classifier
from biomedclip_ray.images.errors import ImageError
from biomedclip_ray.images.image import Prepared, Recipe, prepare
from biomedclip_ray.jats.media import media_name, stem
from biomedclip_ray.run.capacity import Capacity
from biomedclip_ray.run.stage import Made, RunParts, Stage
from biomedclip_ray.schema import PAIRS, Reason, pair_id
from biomedclip_ray.sources.bucket import Bucket, ObjectError
from biomedclip_ray.sources.open import open_bucket, unreachable
from biomedclip_ray.store.ahead import fetch_ahead
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.delta import Previous, finished_before
from biomedclip_ray.store.ledger import Ledger, PartResult
from biomedclip_ray.store.product import Product

VERSION = 15
UNIT, PANEL = "picture", "panel"
_BY_ITS_TEXT = (Reason.TEXT_FILTER.value, Reason.TEXT_CLASSIFIER.value)
_THUMBNAIL_SIDE = 200
"""Pixels of a short side below which the image of an alternative may be a thumbnail."""


def _content(config: Config, articles: Product) -> dict[str, Any]:
    """Raises ConfigError where a configured classifier or bundle cannot be read."""
    content = config.preprocess.content()
    if classifier := content["select"]["classifier"]:
        classifier["sha256"] = classifier_sha256(classifier.pop("uri"))
    content["kinds"]["bundle"] = bundle_id(config.preprocess.kinds)
    return content


def _work(attempt: Attempt, run_parts: RunParts, config: Config, articles: Product) -> Made:
    attempt.parts = articles.parts
    earlier, attempt.parent = finished_before(articles, lambda source: preprocess.plan(config, source))
    args = (attempt, articles, earlier, config.source, config.preprocess)
    run_parts(_part, config.preprocess.resources, args)
    return Made(transient_limit=config.preprocess.transient_limit)


def _check(config: Config, articles: Product) -> list[str]:
    problems = unreachable(config.source)
    if classifier := config.preprocess.select.classifier:
        try:
            load_classifier(classifier.uri, classifier_sha256(classifier.uri))
        except ConfigError as error:
            problems.append(str(error))
    return problems


def _fit(config: Config, capacity: Capacity, *_: Any) -> list[str]:
    return capacity.lacks("preprocess.resources", config.preprocess.resources)


preprocess = Stage("preprocess", VERSION, _content, _work, check=_check, fit=_fit)
"""Reads the articles, and the media of their figures."""


@dataclass(frozen=True)
class _Graphic:
    """One image of one figure, before it is fetched."""

    pair_id: str
    article: dict[str, Any]
    figure: dict[str, Any]
    media: list[dict[str, Any]]


def _part(
    part: int, attempt: Attempt, articles: Product, earlier: Product | None, source: Source, config: Preprocess
) -> PartResult:
    bucket = open_bucket(source.uri, source.resources)
    ledger = Ledger("preprocess")
    rows: list[dict[str, Any]] = []
    previous = Previous.read(attempt.parent, part)
    before = Previous.read(earlier, part).rows if attempt.parent is not None else {}
    fresh = []
    for article in articles.read(part).to_pylist():
        article_id = article["article_id"]
        if before.get(article_id) == [article] and previous.knows(article_id):
            taken = previous.take(article_id, ledger)
            panels = sum(row["panel"] > 0 for row in taken)
            kept = len(taken) - panels
            ledger.count(UNIT, kept + previous.count(article_id, UNIT), kept)
            if config.panels:
                ledger.count(PANEL, panels + previous.count(article_id, PANEL), panels)
            rows += taken
        else:
            fresh.append(article)
    reused = len(rows)
    unwanted = left_out(
        [figure for article in fresh for figure in article["figures"]],
        config.select,
        _classifier(attempt.product, config),
    )
    wanted = []
    for graphic in _graphics(fresh):
        if found := unwanted.get(graphic.figure["figure_id"]):
            ledger.drop(UNIT, graphic.pair_id, *found)
            ledger.count(UNIT, 1, 0)
        elif (known := _known(graphic, before, previous, config)) is not None:
            _take(*known, ledger, rows)
        else:
            wanted.append(graphic)
    again = len(rows)
    threads = source.resources.threads
    with ThreadPoolExecutor(threads) as pool:
        for graphic, fetched in fetch_ahead(pool, lambda g: _fetch(bucket, g.media[0]), wanted, ahead=2 * threads):
            rows += _pairs(bucket, graphic, fetched, config, ledger)
    name_kinds(rows[reused:], config.kinds, attempt.product.config["kinds"]["bundle"])
    rows.sort(key=lambda row: str(row["pair_id"]))
    withdrawn = tuple(
        sorted({row["pair_id"] for taken in previous.rows.values() for row in taken} - {r["pair_id"] for r in rows})
    )
    return PartResult(pa.Table.from_pylist(rows, schema=PAIRS), ledger, again, withdrawn)


def _known(
    graphic: _Graphic, before: dict[str, list[dict[str, Any]]], previous: Previous, config: Preprocess
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """An image's rows and ledger rows by the parent, where the article has changed and its files have not: the same
    keys with the same md5. None where it must be read.
    """
    article_id = graphic.article["article_id"]
    earlier = next((g for g in _graphics(before.get(article_id, [])) if g.pair_id == graphic.pair_id), None)
    files = _files(graphic)
    if earlier is None or files is None or _files(earlier) != files:
        return None
    base = graphic.pair_id.removesuffix("#0")
    rows = [row for row in previous.rows.get(article_id, []) if row["pair_id"].rpartition("#")[0] == base]
    lost = [row for row in previous.dropped.get(article_id, []) if row["id"].rpartition("#")[0] == base]
    if (not rows and not lost) or any(row["transient"] or row["reason"] in _BY_ITS_TEXT for row in lost):
        return None
    if not config.panels or not may_be_cut(graphic.figure):
        rows = [row for row in rows if not row["panel"]]
        lost = [row for row in lost if row["unit"] == UNIT]
    elif not may_be_cut(earlier.figure) or any(
        earlier.figure[k] != graphic.figure[k] for k in ("plain_caption", "label")
    ):
        return None  # panels are cut by the caption
    return [renewed(row, graphic.article, graphic.figure, config.mentions) for row in rows], lost


def _files(graphic: _Graphic) -> list[tuple[str, str]] | None:
    """Keys and md5 of an image's files in their order; None where a md5 is not known."""
    found = [(media["key"], media["md5"]) for media in graphic.media if media["found"]]
    return found if found and all(md5 for _, md5 in found) else None


def _take(taken: list[dict[str, Any]], lost: list[dict[str, Any]], ledger: Ledger, rows: list[dict[str, Any]]) -> None:
    rows += taken
    ledger.rows += lost
    for unit in (UNIT, PANEL):
        kept = sum((row["panel"] > 0) == (unit == PANEL) for row in taken)
        gone = sum(row["unit"] == unit for row in lost)
        if kept or gone:
            ledger.count(unit, kept + gone, kept)


def _classifier(product: Product, config: Preprocess) -> Classifier | None:
    """The classifier that the product was planned with."""
    asked = config.select.classifier
    return None if asked is None else load_classifier(asked.uri, product.config["select"]["classifier"]["sha256"])


def _pairs(
    bucket: Bucket, graphic: _Graphic, fetched: bytes | ObjectError, config: Preprocess, ledger: Ledger
) -> list[dict[str, Any]]:
    """The whole figure and, where asked for and allowed, its panels; nothing and a ledger row where no file decodes."""
    try:
        data, prepared, media = _first_that_decodes(bucket, graphic, fetched, config)
    except (ObjectError, ImageError) as error:
        ledger.drop(UNIT, graphic.pair_id, error.reason, error.detail)
        ledger.count(UNIT, 1, 0)
        return []
    ledger.count(UNIT, 1, 1)
    rows = [whole_pair(graphic.pair_id, graphic.article, graphic.figure, prepared, media, config.mentions)]
    if config.panels and may_be_cut(graphic.figure):
        for found in panel_pairs(rows[0], graphic.figure, data, config):
            if isinstance(found, dict):
                rows.append(found)
                ledger.count(PANEL, 1, 1)
            else:
                ledger.drop(PANEL, found[0], found[1].reason, found[1].detail)
                ledger.count(PANEL, 1, 0)
    return rows


def _graphics(articles: list[dict[str, Any]]) -> Iterator[_Graphic]:
    for article in articles:
        for figure in article["figures"]:
            graphics: dict[int, list[dict[str, Any]]] = {}
            for media in figure["media"]:
                graphics.setdefault(media["graphic"], []).append(media)
            # what the article lists comes first: an alternative without a file is only named in the ledger
            choices = [sorted(options, key=lambda media: not media["found"]) for options in graphics.values()]
            names = _distinct([stem(media_name(options[0]["key"] or options[0]["name"])) for options in choices])
            for options, name in zip(choices, names, strict=True):
                suffix = None if len(choices) == 1 else name
                yield _Graphic(pair_id(figure["figure_id"], suffix, 0), article, figure, options)


def _distinct(names: list[str]) -> list[str]:
    """Names that several bear get their place, and `_` until they are free: a, a, a-1 -> a-1_, a-2, a-1."""
    taken = {name for name in names if names.count(name) == 1}
    found = []
    for number, name in enumerate(names, start=1):
        if name not in taken:
            name = f"{name}-{number}"
            while name in taken:
                name += "_"
        found.append(name)
    return found


def _fetch(bucket: Bucket, media: dict[str, Any]) -> bytes | ObjectError:
    if not media["found"]:
        return ObjectError(Reason.NO_MEDIA, media["name"])
    try:
        return bucket.get(media["key"], media["md5"])
    except ObjectError as error:
        return error


def _first_that_decodes(
    bucket: Bucket, graphic: _Graphic, fetched: bytes | ObjectError, config: Preprocess
) -> tuple[bytes, Prepared, dict[str, Any]]:
    """File, image and media of the first alternative that can be had. Raises the first alternative's error where none
    can.

    Where the best one failed, a small image may be a thumbnail: the others are looked at, and the largest is taken. An
    outage raises at once: a rerun would find the thumbnail taken and never ask for the image again.
    """
    errors: list[ObjectError | ImageError] = []
    small: list[tuple[bytes, Prepared, dict[str, Any]]] = []
    for media in graphic.media:
        data = fetched if media is graphic.media[0] else _fetch(bucket, media)
        if isinstance(data, ObjectError):
            if data.reason.transient:
                raise data
            errors.append(data)
            continue
        try:
            prepared = prepare(data, Recipe.of(config))
        except ImageError as error:
            errors.append(error)
            continue
        if not errors or min(prepared.original_width, prepared.original_height) >= _THUMBNAIL_SIDE:
            return data, prepared, media
        small.append((data, prepared, media))
    if small:
        return max(small, key=lambda found: found[1].original_width * found[1].original_height)
    raise errors[0]
