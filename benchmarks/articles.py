"""A bucket of any number of articles for benchmarks: a small one's articles again and again, each under a PMCID of its
own.

Files are links, so that five thousand articles cost no space; XML, images and their md5 stay as they are.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import importlib.util
import itertools
import json
import os
import sys
from pathlib import Path

from biomedclip_ray.sample import make_bucket
from biomedclip_ray.sources.inventory import INVENTORIES

DATE = "2026-11-20T01-00Z"
DATA = Path(os.environ.get("BIOMEDCLIP_TEST_DATA", Path(__file__).resolve().parents[2] / "shared"))
"""The folder that holds corpus/, unless a benchmark is told another."""


def add_data_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=DATA, help="the folder that holds corpus/")


def add_skip_option(parser: argparse.ArgumentParser, package: str) -> None:
    parser.add_argument("--skip", choices=(package,), help=f"leave out what is compared with {package}")


def compares_with(package: str, options: argparse.Namespace) -> bool:
    """Whether to compare with a package of the extra `benchmark`; ends the program where that is wanted
    and not there.
    """
    if options.skip == package:
        return False
    if importlib.util.find_spec(package) is None:
        print(
            f"{package} is not installed: make bench installs it, or leave it out with --skip {package}",
            file=sys.stderr,
        )
        sys.exit(2)
    return True


def origin(folder: Path) -> Path:
    """The bucket of real articles where DATA has it, else a generated one in `folder`."""
    real = DATA / "corpus" / "bucket"
    if real.is_dir():
        return real
    make_bucket(folder, n_articles=60)
    return folder


def multiply(source: Path, target: Path, n: int) -> None:
    """Make `target` a bucket of n articles."""
    (target / "metadata").mkdir(parents=True)
    metadata = [json.loads(path.read_text()) for path in sorted((source / "metadata").glob("*.json")) if _usable(path)]
    rows = []
    for number, raw in zip(range(n), itertools.cycle(metadata), strict=False):
        pmcid = f"PMC{number + 10_000_000}"
        before, after = f"{raw['pmcid']}.{raw['version']}", f"{pmcid}.1"
        (target / after).symlink_to((source / before).resolve(), target_is_directory=True)
        new = raw | {
            "pmcid": pmcid,
            "version": 1,
            "license_code": "CC BY",
            "is_retracted": False,
            "is_manuscript": False,
        }
        new["xml_url"] = raw["xml_url"].replace(f"/{before}/", f"/{after}/")
        new["media_urls"] = [url.replace(f"/{before}/", f"/{after}/") for url in raw["media_urls"]]
        data = json.dumps(new).encode()
        (target / "metadata" / f"{after}.json").write_bytes(data)
        rows.append(["pmc-oa-opendata", f"metadata/{after}.json", DATE, hashlib.md5(data).hexdigest()])
    write_inventory(target, rows)


def write_inventory(target: Path, rows: list[list[str]]) -> None:
    """One inventory of one gzip CSV."""
    folder = target / INVENTORIES
    (folder / "data").mkdir(parents=True)
    (folder / DATE).mkdir()
    key = f"{INVENTORIES}/data/all.csv.gz"
    with gzip.open(target / key, "wt", compresslevel=1, newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    (folder / DATE / "manifest.json").write_text(json.dumps({"files": [{"key": key}]}))


def peak_mb() -> float:
    """The largest resident memory of this process so far (Linux). Not getrusage's, which starts at that
    of the parent.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _usable(path: Path) -> bool:
    """Whether it is an article's metadata, of which generated buckets break some on purpose."""
    try:
        raw = json.loads(path.read_text())
        return raw["xml_url"].startswith("s3://") and isinstance(raw["media_urls"], list)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
