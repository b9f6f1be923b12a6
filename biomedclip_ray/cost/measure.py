"""Measures the rates that a plan needs on a folder of articles: the stages themselves, with Ray's pipeline replaced by
a loop.

Images are made twice, without and with panels, and what panels add is the difference. Process time on one core, files
read from the local disk; a request is measured apart, through boto3, against a server of its own on loopback. A minute
for a hundred articles.
"""

from __future__ import annotations

import multiprocessing
import platform
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any

from biomedclip_ray.config import Config, PartResources, SourceResources
from biomedclip_ray.corpus.curate import curate
from biomedclip_ray.cost.inputs import Rates
from biomedclip_ray.figures.preprocess import PANEL, preprocess
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.pmc.ingest import ingest
from biomedclip_ray.run.parts import Runner, Worker, in_process
from biomedclip_ray.schema import Reason
from biomedclip_ray.sources.bucket import Bucket, ObjectError, SourceError
from biomedclip_ray.sources.inventory import Inventory, find_inventory
from biomedclip_ray.sources.open import open_bucket
from biomedclip_ray.sources.s3 import S3Bucket
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.product import Product

_REQUESTS, _REQUEST_BYTES = 400, 100_000
_FIRST = 4
_BY_ARTICLE = (Reason.YEAR, Reason.JOURNAL, Reason.ARTICLE_TYPE)
_BY_TEXT = (Reason.TEXT_FILTER, Reason.TEXT_CLASSIFIER)


def measure(config: Config, articles: int) -> tuple[Rates, dict[str, float]]:
    """Rates on `articles` articles of config.source.uri, a local folder, and what its selections let through.

    Returns:
        the rates, and World's article_share and text_share: of those that were judged, whatever else became of them.

    Raises:
        SourceError: the source is no folder, or nothing in it gives an image.
    """
    if "://" in config.source.uri:
        raise SourceError(
            f"source.uri={config.source.uri}: --measure times work and not the network, and wants a folder"
        )
    seconds: dict[str, float] = {}

    def timed(attempt: Attempt, worker: Worker, resources: PartResources, args: tuple[Any, ...] = ()) -> None:
        started = time.process_time()
        in_process(attempt, worker, resources, args)
        stage = attempt.product.stage
        seconds[stage] = seconds.get(stage, 0) + time.process_time() - started

    with tempfile.TemporaryDirectory(prefix="biomedclip-measure-") as root:
        config = _reduced(config, root, articles)
        bucket = open_bucket(config.source.uri, config.source.resources)
        inventory = find_inventory(bucket, config.source.inventory)
        # What the first articles load (libraries, models) is no article's cost.
        _data_side(_with_panels(_reduced(config, f"{root}/first", _FIRST)), inventory, in_process)
        versions, texts, pairs = _data_side(config, inventory, timed)
        counts = {c["unit"]: c for product in (versions, texts, pairs) for c in product.manifest["counts"]}
        kept = counts["picture"]["kept"] if "picture" in counts else 0
        if not kept:
            raise SourceError(f"source.uri={config.source.uri}: no image among {articles} articles to measure with")
        passed = _passed(counts["picture"], _BY_TEXT)
        plain = seconds.pop("preprocess")
        cut = preprocess.run(_with_panels(config), texts, runner=timed).product
        panels = sum(c["kept"] for c in cut.manifest["counts"] if c["unit"] == PANEL)
        started = time.process_time()
        corpus = curate.run(config, pairs, runner=in_process).product  # its tasks run here as well
        curated = time.process_time() - started
        decided = next(count["in"] for count in corpus.manifest["counts"] if count["unit"] == "pair")
        rows = [row for table in versions.scan(["json_key", "xml_key"]) for row in table.to_pylist()]
        rates = Rates(
            measured=f"{len(rows)} articles, {kept} images, {platform.machine()}, Python {platform.python_version()}",
            request_ms=request_ms(config.source.resources),
            version_ms=1000 * seconds["catalog"] / counts["article_version"]["in"],
            article_ms=1000 * seconds["ingest"] / counts["article"]["in"],
            image_ms=1000 * plain / passed,
            panels_ms=1000 * max(0.0, seconds["preprocess"] - plain) / passed,
            panels_found=panels / kept,
            json_bytes=_mean_size(bucket, [row["json_key"] for row in rows]),
            xml_bytes=_mean_size(bucket, [row["xml_key"] for row in rows]),
            image_bytes=_mean_size(bucket, _media(texts)),
            pair_bytes=_bytes_of(pairs) / kept,
            article_bytes=_bytes_of(texts) / counts["article"]["kept"],
            curate_ms=1000 * curated / decided,
        )
    shares = {
        "article_share": _passed(counts["article"], _BY_ARTICLE) / counts["article"]["in"],
        "text_share": passed / counts["picture"]["in"],
    }
    return rates, shares


def _data_side(config: Config, inventory: Inventory, runner: Runner) -> tuple[Product, Product, Product]:
    """Versions, articles and pairs."""
    versions = catalog.run(config, inventory, runner=runner).product
    texts = ingest.run(config, versions, runner=runner).product
    return versions, texts, preprocess.run(config, texts, runner=runner).product


def _passed(count: dict[str, Any], reasons: tuple[Reason, ...]) -> int:
    """How many units were not dropped for one of these reasons."""
    return int(count["in"]) - sum(count["dropped"].get(reason.value, 0) for reason in reasons)


def request_ms(resources: SourceResources) -> float:
    """Core-milliseconds of the client for one GET of 100 KB, md5 included, over kept connections without TLS."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    theirs.close()  # so that a server that does not come up is an error, and nobody waits for it
    try:
        port = ours.recv()
        bucket = S3Bucket(f"s3://measure?endpoint_override=http://127.0.0.1:{port}", resources)
        with ThreadPoolExecutor(resources.threads) as threads:
            list(threads.map(bucket.get, ["warm"] * resources.threads))
            started = time.process_time()
            list(threads.map(bucket.get, [f"{n}" for n in range(_REQUESTS)]))
            return 1000 * (time.process_time() - started) / _REQUESTS
    finally:
        server.terminate()
        server.join()


def _serve(port: Connection) -> None:
    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(_REQUEST_BYTES))
            self.end_headers()
            self.wfile.write(bytes(_REQUEST_BYTES))

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    port.send(server.server_port)
    server.serve_forever()


def _reduced(config: Config, root: str, articles: int) -> Config:
    source = config.source.model_copy(
        update={"select": config.source.select.model_copy(update={"articles": articles}), "articles_per_part": 100}
    )
    images = config.preprocess.model_copy(update={"panels": False})
    return config.model_copy(update={"root": root, "source": source, "preprocess": images})


def _with_panels(config: Config) -> Config:
    return config.model_copy(update={"preprocess": config.preprocess.model_copy(update={"panels": True})})


def _media(articles: Product) -> list[str]:
    return [
        media["key"]
        for table in articles.scan(["figures"])
        for figures in table["figures"].to_pylist()
        for figure in figures
        for media in figure["media"]
        if media["found"]
    ]


def _mean_size(bucket: Bucket, keys: list[str]) -> float:
    """Bytes of those objects that are there: a listed file may be missing."""
    sizes = []
    for key in keys:
        with suppress(ObjectError):
            sizes.append(len(bucket.get(key)))
    return sum(sizes) / len(sizes)


def _bytes_of(product: Product) -> int:
    return sum(int(file["bytes"]) for file in product.manifest["files"] if file["name"].startswith("data/"))
