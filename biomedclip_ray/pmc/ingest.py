"""Stage ingest: catalog and XML -> one row for each article with its figures, captions, mentions and media names.

No image byte is fetched here: what a figure says is known before what it shows, and that decides what is worth
fetching.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from biomedclip_ray.config import Config, Ingest, IngestSelect, Source
from biomedclip_ray.jats.article import Article, Figure, JatsError, parse_article
from biomedclip_ray.jats.media import matching_media
from biomedclip_ray.run.capacity import Capacity
from biomedclip_ray.run.stage import Made, RunParts, Stage
from biomedclip_ray.schema import ARTICLES, Reason, figure_ids
from biomedclip_ray.sources.bucket import Bucket, ObjectError
from biomedclip_ray.sources.open import open_bucket, unreachable
from biomedclip_ray.store.ahead import fetch_ahead
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.delta import Previous, finished_before, unchanged
from biomedclip_ray.store.ledger import Ledger, PartResult
from biomedclip_ray.store.product import Product

VERSION = 10
ARTICLE, FIGURE = "article", "figure"


def _content(config: Config, catalog: Product) -> dict[str, Any]:
    return config.ingest.content()


def _work(attempt: Attempt, run_parts: RunParts, config: Config, catalog: Product) -> Made:
    attempt.parts = catalog.parts
    earlier, attempt.parent = finished_before(catalog, lambda source: ingest.plan(config, source))
    run_parts(_part, config.ingest.resources, (attempt.parent, catalog, earlier, config.source, config.ingest))
    return Made(transient_limit=config.ingest.transient_limit)


def _check(config: Config, catalog: Product) -> list[str]:
    return unreachable(config.source)


def _fit(config: Config, capacity: Capacity, *_: Any) -> list[str]:
    return capacity.lacks("ingest.resources", config.ingest.resources)


ingest = Stage("ingest", VERSION, _content, _work, check=_check, fit=_fit)
"""Reads the catalog, and the XML of every article in it."""


def _part(
    part: int, parent: Product | None, catalog: Product, earlier: Product | None, source: Source, config: Ingest
) -> PartResult:
    bucket = open_bucket(source.uri, source.resources)
    ledger = Ledger("ingest")
    ledger.count(ARTICLE, 0, 0)
    rows: list[dict[str, Any]] = []
    entries = catalog.read(part).to_pylist()
    previous = Previous.read(parent, part)
    before = Previous.read(earlier, part).rows if parent is not None else {}
    fresh = []
    for entry in entries:
        article_id = entry["article_id"]
        if unchanged(before.get(article_id), [entry]) and previous.knows(article_id):
            taken = previous.take(article_id, ledger)
            kept = sum(len(row["figures"]) for row in taken)
            ledger.count(FIGURE, kept + previous.count(article_id, FIGURE), kept)
            rows += taken
        else:
            fresh.append(entry)
    reused = len(rows)
    allowed = source.select.allowed()
    threads = source.resources.threads
    with ThreadPoolExecutor(threads) as pool:
        for entry, xml in fetch_ahead(pool, lambda e: _fetch(bucket, e), fresh, ahead=2 * threads):
            if row := read_article(entry, xml, config, allowed, ledger):
                rows.append(row)
    rows.sort(key=lambda row: str(row["article_id"]))
    ledger.count(ARTICLE, len(entries), len(rows))
    withdrawn = tuple(sorted(set(previous.rows) - {row["article_id"] for row in rows}))
    return PartResult(pa.Table.from_pylist(rows, schema=ARTICLES), ledger, reused, withdrawn)


def read_article(
    entry: dict[str, Any], xml: bytes | ObjectError, config: Ingest, allowed: frozenset[str], ledger: Ledger
) -> dict[str, Any] | None:
    """A row of ARTICLES, or None and a row in the ledger."""
    if isinstance(xml, ObjectError):
        ledger.drop(ARTICLE, entry["article_id"], xml.reason, xml.detail)
        return None
    try:
        article = parse_article(xml, config.tables)
    except JatsError as error:
        ledger.drop(ARTICLE, entry["article_id"], error.reason, str(error))
        return None
    if unwanted := rejection(article, config.select):
        ledger.drop(ARTICLE, entry["article_id"], *unwanted)
        return None
    code, stated_by = _license(entry, article)
    if stated_by != "metadata" and code not in allowed:  # the catalog judged what the metadata say
        ledger.drop(ARTICLE, entry["article_id"], Reason.LICENSE, code)
        return None
    row = article_row(entry, article, allowed, ledger)
    if not row["figures"]:
        ledger.drop(ARTICLE, entry["article_id"], Reason.NO_FIGURES, f"{len(article.figures)} in the XML")
        return None
    return row


def rejection(article: Article, select: IngestSelect) -> tuple[Reason, str] | None:
    """Why an article is not to be used, and what it says about itself; or None."""
    if select.years is not None:
        first, last = select.years
        if article.year is None or article.year < (first or 0) or article.year > (last or article.year):
            return Reason.YEAR, str(article.year or "unknown")
    if select.journals and _plain(article.journal or "") not in map(_plain, select.journals):
        return Reason.JOURNAL, article.journal or "unknown"
    if select.article_types and article.article_type not in select.article_types:
        return Reason.ARTICLE_TYPE, article.article_type or "unknown"
    return None


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def article_row(entry: dict[str, Any], article: Article, allowed: frozenset[str], ledger: Ledger) -> dict[str, Any]:
    """A row of ARTICLES from a row of CATALOG and the parsed XML; figures that cannot be used go to the ledger.

    Args:
        allowed: the licences that a figure with a licence of its own may have. A figure whose permissions name none
            stays, with the licence "unknown", which curate.select.licenses may leave out.
    """
    files = {media["key"].rsplit("/", 1)[1]: media for media in entry["media"]}
    figures = []
    ids = figure_ids(entry["article_id"], [figure.xml_id for figure in article.figures])
    license_code, license_source = _license(entry, article)
    for figure_id, figure in zip(ids, article.figures, strict=True):
        media = _media(figure, files)
        if figure.license not in (None, "unknown") and figure.license not in allowed:
            ledger.drop(FIGURE, figure_id, Reason.LICENSE, figure.license)
        elif not figure.caption:
            ledger.drop(FIGURE, figure_id, Reason.NO_CAPTION)
        elif not media:
            ledger.drop(FIGURE, figure_id, Reason.NO_GRAPHIC)
        elif not any(item["found"] for item in media):
            ledger.drop(FIGURE, figure_id, Reason.NO_MEDIA, ", ".join(item["name"] for item in media))
        else:
            figures.append(_figure_row(figure_id, figure, media, figure.license or license_code))
    ledger.count(FIGURE, len(article.figures), len(figures))
    return {
        "article_id": entry["article_id"],
        "pmcid": entry["pmcid"],
        "part": entry["part"],
        "title": article.title or entry["title"],
        "journal": article.journal,
        "year": article.year,
        "article_type": article.article_type,
        "keywords": list(article.keywords),
        "doi": entry["doi"] or article.doi,
        "pmid": entry["pmid"] or article.pmid,
        "preprint": article.preprint,
        "license": license_code,
        "license_source": license_source,
        "figures": figures,
    }


def _license(entry: dict[str, Any], article: Article) -> tuple[str, str | None]:
    """An article's licence and where it is stated: by the metadata, else by the XML."""
    if entry["license"] != "unknown":
        return entry["license"], "metadata"
    return article.license or "unknown", article.license_source


def _figure_row(figure_id: str, figure: Figure, media: list[dict[str, Any]], license_code: str) -> dict[str, Any]:
    return {
        "figure_id": figure_id,
        "label": figure.label,
        "is_table": figure.is_table,
        "caption": figure.caption,
        "plain_caption": figure.plain_caption,
        "mentions": [{"sentence": m.sentence, "in_body": m.in_body} for m in figure.mentions],
        "license": license_code,
        "adapted": figure.adapted,
        "media": media,
    }


def _media(figure: Figure, files: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The files that a figure names, matched among the article's own; alternatives share a `graphic` number.

    Files of the same stem are alternatives too: where the JPEG is cut, the TIFF beside it is whole.
    """
    media = []
    for graphic, names in enumerate(figure.graphics):
        taken: set[str] = set()
        for name in names:
            matches = [match for match in matching_media(name, list(files)) if match not in taken]
            taken.update(matches)
            for match in matches:
                media.append({"name": name, **files[match], "found": True, "graphic": graphic})
            if not matches:
                media.append({"name": name, "key": None, "md5": None, "found": False, "graphic": graphic})
    return media


def _fetch(bucket: Bucket, entry: dict[str, Any]) -> bytes | ObjectError:
    try:
        return bucket.get(entry["xml_key"], entry["xml_md5"])
    except ObjectError as error:
        return error
