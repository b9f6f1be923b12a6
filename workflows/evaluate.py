"""Any CLIPs on any labelled sets: figures with intervals, controls and a comparison. No corpus, no training, and on one
machine no Ray.

    python workflows/evaluate.py --bundles A B C --sets DIR... --out DIR [--seed N] [--draws N]
    python workflows/evaluate.py --index ROOT/embed/ID [--split test] [--out DIR]
    python workflows/evaluate.py --known [SET...]

A bundle is whatever `Encoder.load` reads; a set is a folder with dataset.json (biomedclip_ray/evaluate/layouts.py tells
the layouts). Vectors are kept in OUT/features: another set, seed or metric encodes nothing twice, and a killed run goes
on. With RAY_ADDRESS set the images are encoded all over that cluster, and OUT must be a place that all its nodes share.
The first table, of what needs no training, comes right after the encoding; then the probes and VQA. With --index
held-out pairs are sought among all that an index holds, beside an exact search, and the index's own recall is told.
--known lists the public sets that are known by name, with what to put where.
Exit codes: 0 done; 1 something failed; 2 bundles, sets or options are wrong, and nothing was encoded.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

# The checkout that is submitted is what runs, whatever version the image has installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pydantic import ValidationError
from rich.console import Console

from biomedclip_ray.config import ConfigError, Evaluate, Fusion, PartResources
from biomedclip_ray.evaluate.bundles import Asked, Written, encode_on_cluster, gather
from biomedclip_ray.evaluate.compare import as_csv, as_html, as_latex, comparison, table
from biomedclip_ray.evaluate.features import Each, recalled
from biomedclip_ray.evaluate.registry import KNOWN, told_of
from biomedclip_ray.evaluate.set_tables import set_tables
from biomedclip_ray.evaluate.sets import LabelledSet, load_sets
from biomedclip_ray.evaluate.tables import bundles_table, comparison_table, index_table
from biomedclip_ray.report.sets import sets_page
from biomedclip_ray.run.connect import connect
from biomedclip_ray.run.preflight import PreflightError
from biomedclip_ray.store.place import Place, StorageError, check_writable
from biomedclip_ray.store.product import StageError

log = logging.getLogger("evaluate")
console = Console(width=None if sys.stdout.isatty() else 180)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger().setLevel(logging.WARNING)  # open_clip tells of every file that it reads
    log.setLevel(logging.INFO)
    from biomedclip_ray.clip.bundle import BundleError

    try:
        if options.known is not None:
            print("\n\n".join(told_of(name) for name in options.known or KNOWN))
            return 0
        if options.index:
            _through_index(options)
            return 0
        section = _section(options)
        sets = load_sets(options.sets)
        for labelled in sets:
            counts = ", ".join(f"{name} {n:,}" for name, n in labelled.about()["rows"].items())
            log.info(
                "%s (%s): %s%s", labelled.name, labelled.task, counts, "".join(f"; {w}" for w in labelled.warnings)
            )
        if options.dry_run:
            return 0
        check_writable(options.out)
        _run(options, section, sets)
    except (ConfigError, PreflightError, BundleError, StorageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what is encoded is kept; the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundles", nargs="+", metavar="CLIP", help="folders, s3://..., hf-hub:OWNER/NAME")
    parser.add_argument("--sets", nargs="+", metavar="DIR", help="folders with dataset.json")
    parser.add_argument("--out", metavar="DIR", help="where features, rows and figures go")
    parser.add_argument(
        "--index", metavar="INDEX", help="what the embed stage made: retrieval through it, nothing else"
    )
    parser.add_argument("--known", nargs="*", metavar="SET", choices=KNOWN, help="tell of known sets, nothing else")
    parser.add_argument("--split", choices=["test", "validation", "train"], default="test", help="asked of --index")
    parser.add_argument("--seed", type=int, default=0, help="of draws, folds and controls")
    parser.add_argument("--draws", type=int, default=1000, help="resamples behind each interval")
    parser.add_argument(
        "--max-left-out", type=float, default=0.05, help="share of a set's images that may lack a vector"
    )
    parser.add_argument("--corruptions", action="store_true", help="also 500 test images a set made worse in 25 ways")
    parser.add_argument("--fusion", type=int, default=0, metavar="EPOCHS", help="train a head that answers questions")
    parser.add_argument("--tower-rate", type=float, default=0.0, help="learning rate of the towers beside that head")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of the towers")
    parser.add_argument("--dry-run", action="store_true", help="read and check the sets; start nothing")
    options = parser.parse_args(arguments)
    if options.known is None and not options.index:
        missing = [f"--{name}" for name in ("bundles", "sets", "out") if not getattr(options, name)]
        if missing:
            parser.error(f"{' and '.join(missing)} must be given (or --index alone)")
    elif options.bundles or options.sets:
        parser.error("--index and --known go without --bundles and --sets")
    return options


def _through_index(options: argparse.Namespace) -> None:
    from biomedclip_ray.search.index import Index
    from biomedclip_ray.search.retrieval import through_index

    found = through_index(Index.open(options.index), options.split, options.draws, options.seed)
    console.print(index_table(found))
    if options.out:
        Place(options.out).write("retrieval_through_index.json", json.dumps(found, indent=1).encode())


def _section(options: argparse.Namespace) -> Evaluate:
    """The options as the workflow's section. Raises ConfigError."""
    try:
        return Evaluate(
            bootstraps=options.draws,
            seed=options.seed,
            max_left_out=options.max_left_out,
            corruptions=options.corruptions,
            precision=options.precision,
            fusion=Fusion(epochs=options.fusion, tower_rate=options.tower_rate),
        )
    except ValidationError as error:
        (first, *_) = error.errors()
        key = str(first["loc"][-1])
        name = {"bootstraps": "draws", "epochs": "fusion"}.get(key, key).replace("_", "-")
        raise ConfigError(f"--{name} {first['input']}: {first['msg']}") from error


def _run(options: argparse.Namespace, section: Evaluate, sets: list[LabelledSet]) -> None:
    from biomedclip_ray.clip.encoder import Encoder

    place = Place(options.out)
    uris = zip(_names(options.bundles), options.bundles, strict=True)
    encoders = [(name, Encoder.load(uri, precision=section.precision)) for name, uri in uris]  # all, or none starts
    features = f"{place.uri}/features"
    started = time.monotonic()
    bundles: dict[str, Asked] = {}
    for uri, (name, encoder) in zip(options.bundles, encoders, strict=True):
        each = _on_cluster(uri, sets, features, section) if os.environ.get("RAY_ADDRESS") else None
        bundles[name] = Asked(encoder, sets, features, section, each, uri)
        bundles[name].encode()
    log.info("images encoded: %s, %.1f s", _counts(bundles, "images"), time.monotonic() - started)
    started = time.monotonic()
    first = table({name: bundle.first() for name, bundle in bundles.items()})
    if first:
        console.print(bundles_table(first, list(bundles), "Without training, with 95% intervals"))
        log.info("texts encoded: %s, first table after %.1f s", _counts(bundles, "texts"), time.monotonic() - started)
    if os.environ.get("RAY_ADDRESS") and section.fusion.epochs:
        from biomedclip_ray.evaluate.fusion import jobs_of, train_on_ray

        for bundle in bundles.values():
            for job in jobs_of(bundle.uri, bundle.features, sets, section):
                train_on_ray(job, _resources())
    results: dict[str, Any] = {}
    rows: dict[str, Written] = {}
    for name, bundle in bundles.items():

        def told(where: str, figures: dict[str, Any], name: str = name) -> None:
            console.print(*set_tables({where: figures}, f"{name} on {where}, with 95% intervals"))

        results[name], rows[name] = bundle.all(place.at(f"rows/{bundle.encoder.bundle_id}"), told=told)
    lines, names = table(results), list(results)
    ids = {name: encoder.bundle_id for name, encoder in encoders}
    pairs = comparison(gather(rows), options.draws, options.seed, ids)
    console.print(bundles_table(lines, names, "All tasks, with 95% intervals"))
    if pairs:
        console.print(comparison_table(pairs))
    evaluation = {
        "bundles": results,
        "encoded": {name: bundle.encoded for name, bundle in bundles.items()},
        "table": lines,
        "comparison": pairs,
        "bootstraps": options.draws,
        "seed": options.seed,
    }
    place.write("evaluation.json", json.dumps(evaluation, indent=1).encode())
    for ending, made in (("csv", as_csv), ("html", as_html), ("tex", as_latex)):
        place.write(f"table.{ending}", made(lines, names).encode())
    place.write("report.html", sets_page(evaluation).encode())
    console.print(f"Figures: {place.uri}/evaluation.json, report: {place.uri}/report.html", soft_wrap=True)


def _counts(bundles: dict[str, Asked], kind: str) -> str:
    return ", ".join(f"{name} {bundle.encoded[kind]:,}" for name, bundle in bundles.items())


def _names(uris: list[str]) -> list[str]:
    """The last part of each bundle's URI; the whole where others share it, numbered where a bundle is named twice."""
    uris = [uri.rstrip("/") for uri in uris]
    short = [uri.rpartition("/")[2] for uri in uris]
    shared = {name for name in short if len({uri for uri, own in zip(uris, short, strict=True) if own == name}) > 1}
    names = [uri if name in shared else name for uri, name in zip(uris, short, strict=True)]
    return [f"{name} ({names[: n + 1].count(name)})" if names.count(name) > 1 else name for n, name in enumerate(names)]


def _on_cluster(bundle: str, sets: list[LabelledSet], features: str, section: Evaluate) -> Each:
    """Encodes all sets on the cluster that RAY_ADDRESS names: a worker on each GPU, else on each CPU."""
    import ray

    if not ray.is_initialized():
        connect()
    return recalled(encode_on_cluster(bundle, sets, features, _resources(), section.precision))


def _resources() -> PartResources:
    """Of a worker on the connected cluster: a GPU and its share of the CPUs, or one CPU."""
    from biomedclip_ray.run.capacity import known

    gpus, cpus = known().total("GPU"), known().total("CPU")
    beside = max(1, int(cpus / gpus) - 1) if gpus else 1
    return PartResources(num_cpus=beside, num_gpus=1 if gpus else 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
