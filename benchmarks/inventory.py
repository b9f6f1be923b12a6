"""An inventory of eight million article versions: seconds and peak memory of dealing it out to parts.

    python benchmarks/inventory.py [--rows 8000000]

Generates the gzip CSV (one version in ten is a second one, as articles have), then, each in a fresh process, shards it
as stage catalog does: once with source.select.articles=1000, once with everything. Prints `inventory_CASE rows=N
seconds=S peak_mb=M`, and the peak of a process that imports the same and reads nothing. Exit 1 where a case takes more
than 400 MB above that, or where the rows that come out are not those that went in.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

from biomedclip_ray.config import Source, SourceResources, SourceSelect
from biomedclip_ray.sources.bucket import INVENTORIES
from biomedclip_ray.sources.inventory import find_inventory, read_entries, shard_entries
from biomedclip_ray.sources.open import open_bucket
from biomedclip_ray.store.place import Place

sys.path.insert(0, str(Path(__file__).parent))
from articles import peak_mb

DATE = "2026-11-20T01-00Z"
BOUND_MB = 400
CASES = {"nothing": None, "thousand": SourceSelect(articles=1000), "everything": SourceSelect()}


def generate(folder: Path, rows: int) -> None:
    """A bucket that holds an inventory and nothing else."""
    (folder / INVENTORIES / DATE).mkdir(parents=True)
    key = f"{INVENTORIES}/all.csv.gz"
    rng = np.random.default_rng(0)
    with gzip.open(folder / key, "wb", compresslevel=1) as file:
        for first in range(0, rows, 250_000):
            number = np.arange(first, min(first + 250_000, rows))
            second = number % 10 == 9  # another version of the article before it
            article, version = 1_000_000 + number - second, 1 + second
            etag = rng.integers(0, 2**63, (2, len(number)))
            table = pa.table(
                {
                    "bucket": ["pmc-oa-opendata"] * len(number),
                    "key": [f"metadata/PMC{a}.{v}.json" for a, v in zip(article, version, strict=True)],
                    "last_modified": ["2026-11-12T08:15:30.000Z"] * len(number),
                    "etag": [f"{a:016x}{b:016x}" for a, b in etag.T.tolist()],
                }
            )
            options = csv.WriteOptions(include_header=False, quoting_style="all_valid")
            csv.write_csv(table, pa.PythonFile(file, mode="w"), options)
    (folder / INVENTORIES / DATE / "manifest.json").write_text(json.dumps({"files": [{"key": key}]}))


def measure(folder: Path, case: str) -> dict[str, float]:
    """Seconds, peak MB, and the rows that came out, in this fresh process."""
    started, out = time.perf_counter(), 0
    select = CASES[case]
    if select is not None:
        bucket = open_bucket(str(folder), SourceResources())
        with tempfile.TemporaryDirectory() as place:
            source = Source(uri=str(folder), select=select)
            parts = shard_entries(bucket, find_inventory(bucket, "newest"), source, Place(place))
            seconds = time.perf_counter() - started
            peak = peak_mb()
            out = sum(read_entries(Place(place), part, parts).num_rows for part in range(parts))
    else:
        seconds, peak = 0.0, peak_mb()
    return {"rows": out, "seconds": seconds, "peak_mb": peak}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(Path(options.case[0]), options.case[1])))
        return 0
    found = {}
    with tempfile.TemporaryDirectory(prefix="biomedclip-bench-") as folder:
        generate(Path(folder), options.rows)
        size = (Path(folder) / INVENTORIES / "all.csv.gz").stat().st_size
        print(f"inventory of {options.rows:,} rows, {size / 1e6:.0f} MB", flush=True)
        for case in CASES:
            command = [sys.executable, __file__, "--case", folder, case]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[case] = json.loads(output.splitlines()[-1])
            facts = " ".join(f"{name}={value:.0f}" for name, value in found[case].items())
            print(f"inventory_{case} {facts}", flush=True)
    added = max(each["peak_mb"] for each in found.values()) - found["nothing"]["peak_mb"]
    print(f"inventory_memory ratio={BOUND_MB / added:.2f} bound=1.00")
    good = added <= BOUND_MB
    good &= found["everything"]["rows"] == options.rows and 1000 <= found["thousand"]["rows"] <= 1500
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
