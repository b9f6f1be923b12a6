"""PubMed Central to a trained, measured and serving CLIP model: the whole workflow, top to bottom.

    python workflows/biomedclip.py workflows/configs/sample.yaml [key=value ...]
    ray job submit --working-dir . -- python workflows/biomedclip.py CONFIG root=s3://bucket/run

Killed at any moment, the same command carries on where storage says it stopped: finished stages are skipped, finished
parts are kept. Exit codes: 0 done; 1 a stage failed; 2 the configuration or its surroundings are wrong, and nothing was
started; 3 too much was lost to network or disk, or the budget is spent, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

# The checkout that is submitted is what runs, whatever version the image has installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from biomedclip_ray.config import STAGES, Config, ConfigError, load
from biomedclip_ray.evaluate.sets import load_sets
from biomedclip_ray.evaluate.tables import tables
from biomedclip_ray.run.compare import compare
from biomedclip_ray.run.connect import connect
from biomedclip_ray.run.foresee import check_foreseen
from biomedclip_ray.run.logs import DriverLog, Logs
from biomedclip_ray.run.meter import Meter, unpriced
from biomedclip_ray.run.notice import address, ended
from biomedclip_ray.run.options import MIRROR, parse
from biomedclip_ray.run.preflight import (
    PreflightError,
    Step,
    check_cluster,
    check_out,
    check_places,
    check_root,
)
from biomedclip_ray.run.prune import prune
from biomedclip_ray.run.record import Run, list_products
from biomedclip_ray.run.room import no_room
from biomedclip_ray.run.runs import RunRecord
from biomedclip_ray.run.telemetry import Telemetry
from biomedclip_ray.sources.bucket import SourceError
from biomedclip_ray.sources.inventory import resolve_inventory
from biomedclip_ray.sources.own_files import OwnFiles, find_files
from biomedclip_ray.store.attempt import UnfinishedError
from biomedclip_ray.store.lease import HeldError
from biomedclip_ray.store.place import Place, StorageError
from biomedclip_ray.store.product import Product, StageError

log = logging.getLogger("biomedclip")


def story(run: Run, config: Config, own: OwnFiles | None) -> tuple[Product, Product]:
    """The stages in order; each reads products and leaves one. Returns the pairs and the corpus, which others may want.

    Args:
        own: one's own files, where there are any.
    """
    from biomedclip_ray.corpus.curate import curate
    from biomedclip_ray.corpus.own import own_pairs, side_by_side
    from biomedclip_ray.evaluate.evaluate import evaluate
    from biomedclip_ray.search.embed import embed
    from biomedclip_ray.train.train import train

    # Images with their texts: out of articles, out of one's own files, or both side by side.
    if own is None:
        pairs = pairs_of_pmc(run)
    elif config.own.alone:
        pairs = run.stage(own_pairs, own)
    else:
        pairs = run.stage(side_by_side, pairs_of_pmc(run), run.stage(own_pairs, own))
    # What is trained on: duplicates out, groups never on both sides of a split.
    corpus = run.stage(curate, pairs)
    # Two towers that learn which image belongs to which caption.
    bundle = run.stage(train, pairs, corpus)
    # How well they do on articles they never saw.
    run.stage(evaluate, bundle, pairs, corpus)
    # Every kept pair as two vectors, in an index that searches them.
    index = run.stage(embed, bundle, pairs, corpus)
    # The encoder and the index behind HTTP.
    if run.wants("deploy"):
        go_live(run, config, bundle, index)
    return pairs, corpus


def pairs_of_pmc(run: Run) -> Product:
    """PubMed Central's figures."""
    from biomedclip_ray.figures.preprocess import preprocess
    from biomedclip_ray.pmc.catalog import catalog
    from biomedclip_ray.pmc.ingest import ingest

    # Which articles there are, and which of them may be used: the newest version of each, judged by its metadata.
    versions = run.stage(catalog, run.inventory)
    # What their figures say: labels, captions, mentions. No image yet.
    articles = run.stage(ingest, versions)
    # What they show: each image fetched once, checked, resized, and put beside its text.
    return run.stage(preprocess, articles)


def hand_over(config: Config, pairs: Product, corpus: Product, options: argparse.Namespace) -> None:
    """The kept pairs as files for others."""
    from biomedclip_ray.corpus.export import export

    note = export(config, pairs, corpus, options.out, options.export)
    counts = ", ".join(f"{split} {n:,}" for split, n in note["counts"]["split"].items())
    console.print(f"Exported to {options.out}: {counts} pairs in {len(note['shards']):,} shards", soft_wrap=True)


def copy_source(run: Run, config: Config, options: argparse.Namespace) -> None:
    """What this run reads, as a bucket of one's own."""
    from biomedclip_ray.pmc.catalog import catalog
    from biomedclip_ray.pmc.ingest import ingest
    from biomedclip_ray.pmc.mirror import mirror

    assert run.inventory is not None  # own.alone was refused
    versions = catalog.plan(config, run.inventory)
    articles = ingest.plan(config, versions) if options.media == "figures" else None
    run.working_on = MIRROR
    copy = mirror(config, run.inventory, versions, articles, options.out)
    objects = copy.product.manifest["counts"][0]
    lost = ", ".join(f"{reason} {n:,}" for reason, n in objects["dropped"].items()) or "none"
    console.print(
        f"Mirrored to {options.out} ({copy.state}): {objects['kept']:,} objects; lost: {lost}", soft_wrap=True
    )


def go_live(run: Run, config: Config, bundle: Product, index: Product) -> None:
    """Deploy, unless the same bundle and index are running already, and ask the live endpoint real questions."""
    if run.dry:
        from biomedclip_ray.serve import needs

        run.build_on("deploy", bundle, index)
        run.unfinished.append((needs, (bundle, index)))
        run.stages.append({"name": "deploy", "state": "run", "why": "asked for", "product": ""})
        return
    from biomedclip_ray.serve.deploy import ask, deploy

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it sets its level when it is imported
    started = time.monotonic()
    with run.at_work("deploy"):
        deployed = deploy(config, bundle, index)
        console.print(f"\nServing at [bold]{deployed.url}[/] ({deployed.state}). It was asked:")
        for line in ask(deployed.url, index):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    run.note("deploy", deployed.state, None, time.monotonic() - started)


def main(arguments: list[str]) -> int:
    options = parse(arguments, __doc__)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for chatty in ("botocore", "boto3", "urllib3", "httpx", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "lance is not fork-safe")  # Ray forks to start other programs, which is safe
    logging.getLogger().addHandler(driver := DriverLog())
    record: RunRecord | None = None
    code, said = 1, list[str]()
    try:
        config = load(options.config, options.overrides)
        check_root(config)
        if options.list:
            from biomedclip_ray.search.table import TABLE

            list_products(config.root, console, {"train": "bundle", "embed": TABLE})
            return 0
        if options.compare:
            first, second = options.compare
            compare(config.root, first, second, console)
            return 0
        record = RunRecord(config.root, arguments)
        if not (options.dry_run or options.prune or options.erase):
            address(config.notice, run=record.id, root=config.root)
        code = _run(config, options, record, driver)
    except KeyboardInterrupt:
        code, said = 130, ["interrupted: what is done is kept; the same command goes on from there"]
        if record is not None and record.over:
            code, said = 3, [f"unfinished: {record.over}"]
    except (ConfigError, SourceError, StorageError, PreflightError, HeldError) as error:
        code, said = 2, [f"error: {line}" for line in str(error).splitlines()]
    except StageError as error:
        said = [f"error: {error}", *getattr(error, "__notes__", ())]
    except UnfinishedError as error:
        code, said = 3, [f"unfinished: {error}"]
    except Exception as error:
        said = [f"error: {error!r}"]
        driver.add(traceback.format_exc())
        raise
    finally:
        if record is not None:
            record.end(code, said)
            if record.begun:
                driver.add("\n".join([f"{record.content['state']}: exit code {code}", *said]))
                driver.keep(config.root, record.id)
            ended(code, record.content["state"], said)
    for line in said:
        print(line, file=sys.stderr)
    final = code == 2 or (record is not None and bool(record.over))
    return 0 if final and options.refusal_is_final else code


def _erase(config: Config, name: str) -> None:
    """Withdraw an id from the root, and say what is left to do. Raises ConfigError where nothing bears it."""
    from biomedclip_ray.corpus.erase import erase

    done = erase(config, name)
    if not done.rows:
        raise ConfigError(
            f"--erase {name}: nothing in {config.root} bears this id; a patient is named as own.uri's files name it"
        )
    for product, rows in done.rows.items():
        console.print(f"Erased from {product}: {rows} rows", soft_wrap=True)
    for bundle in done.bundles:
        console.print(f"Trained on it, and cannot forget: bundle {bundle}", soft_wrap=True)
    console.print(
        "What own.uri, the source and exports hold is not touched. Index and evaluation are made anew by the same "
        "command without --erase, which deploys too; a server that runs answers no search from an index that held it "
        "(503).",
        soft_wrap=True,
    )


def _run(config: Config, options: argparse.Namespace, record: RunRecord, driver: DriverLog) -> int:
    if options.erase:
        _erase(config, options.erase)
        return 0
    first, last = _range(config, options)
    inventory = None if config.own.alone else resolve_inventory(config, options.sync)
    own = find_files(config.own.uri, config.own.pairs_per_part, config.own.columns) if config.own.uri else None
    run = Run(config, inventory, first, last, options.dry_run or options.prune)
    if options.prune:
        story(run, config, own)
        planned = [stage["product"] for stage in run.stages if stage["product"]]
        prune(config.root, planned, None if options.dry_run else options.yes, console)
        return 0
    if options.dry_run:
        story(run, config, own)
        run.show(console)
        run.check_range()
        if run.wants("evaluate"):  # what else stages check (a tokenizer, a source) may be out of reach from here
            load_sets(config.evaluate.sets)
        _refuse(check_foreseen(config, run.unfinished, options.cluster))
        return 0
    if options.out:
        check_out(options.out)
    steps = unfinished(config, run, own)
    _refuse(check_places(config, steps))
    connect()
    import ray

    from biomedclip_ray.cost.account import foresee
    from biomedclip_ray.run.capacity import connected, remember

    try:
        remember(capacity := connected(options.cluster))
        _refuse(check_cluster(config, steps, capacity) + unpriced(config.budget, capacity))
        run.begin()
        record.content["plan"] = foresee(config, inventory, capacity, Path(__file__).with_name("rates.json"))
        record.stages = run.stages
        record.begin()
        try:
            with (
                Telemetry(record.id),
                Logs(config.root, record.id, driver),
                Meter(record, config.budget, run.chosen) as run.meter,
            ):
                pairs, corpus = _tell(run, config, own)
        except HeldError:  # the root is another driver's, its report too
            raise
        except Exception:
            _sum_up(run, config)
            raise
        _sum_up(run, config)
        if options.export:
            hand_over(config, pairs, corpus, options)
        if options.only == MIRROR:
            copy_source(run, config, options)
        if run.wants("deploy"):
            _stay(options.hold)
    except (ConfigError, PreflightError, HeldError, UnfinishedError):
        raise
    except Exception as error:
        if (full := no_room(error, config.root)) is None:
            raise
        driver.add(traceback.format_exc())
        raise UnfinishedError(f"{run.working_on}: {full}") from error
    finally:
        ray.shutdown()
    return 0


def _range(config: Config, options: argparse.Namespace) -> tuple[str, str]:
    """The first and the last stage that the command asks for."""
    if options.only == MIRROR:  # what is copied must be known first, and the articles say what their figures' files are
        if config.own.alone:
            raise ConfigError("--only mirror copies PubMed Central's articles, and own.alone=true reads none")
        return STAGES[0], "ingest" if options.media == "figures" else "catalog"
    first = options.only or options.start or STAGES[0]
    last = "curate" if options.export else options.only or options.until or STAGES[-1]
    if STAGES.index(first) > STAGES.index(last):
        asked = "--export, which ends with" if options.export else "--until"
        raise ConfigError(f"--from {first} comes after {asked} {last}")
    return first, last


def _tell(run: Run, config: Config, own: OwnFiles | None) -> tuple[Product, Product]:
    """The story, with the stage's name beside whatever stops it."""
    try:
        return story(run, config, own)
    except Exception as error:
        error.add_note(f"{run.working_on} failed; what it has done is kept, and the same command goes on from there.")
        raise


def _sum_up(run: Run, config: Config) -> None:
    """What the stages did, also where one of them failed: the table, what was measured, and the report."""
    from biomedclip_ray.cost.account import account_table
    from biomedclip_ray.report.report import write_report

    run.show(console)
    if run.meter is not None and (account := account_table(run.meter.record.content["plan"], run.stages)) is not None:
        console.print(account)
    for stage in run.stages:
        if stage["name"] == "evaluate":
            console.print(*tables(json.loads(Place(stage["product"]).read("evaluation.json"))))
    try:
        console.print(f"Report: {write_report(config.root)}", soft_wrap=True)
    except OSError as error:  # a full disk may be what stopped the stage, and that is what must be told last
        log.warning("the report could not be written: %s", error)


def unfinished(config: Config, run: Run, own: OwnFiles | None) -> list[Step]:
    """The chosen stages that have work to do, with what they read: preflight asks only for what they need."""
    foresight = Run(config, run.inventory, run.chosen[0], run.chosen[-1], dry=True)
    story(foresight, config, own)
    foresight.check_range()
    return foresight.unfinished


def _refuse(problems: list[str]) -> None:
    if problems:
        raise PreflightError("\n".join(problems))


def _stay(hold: bool) -> None:
    """Keep a server of our own Ray up, or say how to; on a cluster it stays up by itself."""
    if not hold:
        if os.environ.get("RAY_ADDRESS", "local") == "local":
            console.print(
                "The server ends here. To keep it up: the same command with --only deploy --hold (make serve)"
            )
        return
    console.print("The server stays up until Ctrl-C.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("Stopping.")


# A log has no width; the table of a run needs about this much.
console = Console(width=None if sys.stdout.isatty() else 140)

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
