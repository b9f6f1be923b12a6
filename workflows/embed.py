"""Vectors of one's own images or texts by any CLIP, in parts, on the cluster; no corpus is needed.

    python workflows/embed.py --bundle BUNDLE --images s3://bucket/photos --out s3://bucket/vectors
    python workflows/embed.py --bundle hf-hub:OWNER/NAME --images table.parquet --column image --out vectors
    python workflows/embed.py --bundle BUNDLE --texts notes.parquet --column text --out vectors [embed.batch=128 ...]

BUNDLE is a bundle of this program, local-dir:PATH or hf-hub:NAME. Each part is a Parquet file (id, vector, bundle)
below OUT/vectors/<fingerprint>/data/, what has no vector is in ledger/ with its reason. Killed at any moment, the same
command goes on. Exit codes: 0 done; 1 failed; 2 refused, and nothing was started; 3 too much was lost to network or
disk, run it again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from omegaconf import OmegaConf

from biomedclip_ray.clip.bundle import BundleError
from biomedclip_ray.config import ConfigError, parse
from biomedclip_ray.run.connect import connect
from biomedclip_ray.run.preflight import PreflightError
from biomedclip_ray.search.bulk import find, vectors
from biomedclip_ray.store.attempt import UnfinishedError
from biomedclip_ray.store.lease import HeldError
from biomedclip_ray.store.place import StorageError
from biomedclip_ray.store.product import StageError


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="embed.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", required=True, metavar="URI", help="the CLIP")
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--images", metavar="URI", help="a folder or bucket of image files, or Parquet with --column")
    kinds.add_argument("--texts", metavar="URI", help=".txt files with a text a line, or Parquet with --column")
    parser.add_argument("--column", metavar="NAME", help="of Parquet files: image bytes, or texts")
    parser.add_argument("--out", required=True, metavar="URI", help="the root that the vectors are written below")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the configuration's section embed")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        raw: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"root={options.out}", *options.overrides]))
        config = parse(raw, "embed.py")
        inputs = find(options.images or options.texts, "image" if options.images else "text", options.column)
        connect()
        outcome = vectors.run(config, options.bundle, inputs)
    except (ConfigError, PreflightError, StorageError, HeldError, BundleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except UnfinishedError as error:
        print(f"unfinished: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    count = outcome.product.manifest["counts"][0]
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in count["dropped"].items()) or "none"
    print(f"{outcome.state}: {count['kept']:,} vectors in {outcome.product.uri}/data; without one: {dropped}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
