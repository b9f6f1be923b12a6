"""Command line of the sample bucket: `python -m biomedclip_ray.sample FOLDER --articles N --seed S`."""

from __future__ import annotations

import argparse
from pathlib import Path

from biomedclip_ray.sample import make_bucket


def main() -> None:
    """Write the bucket and print what it holds."""
    parser = argparse.ArgumentParser(
        description="Write a generated bucket in the layout of PubMed Central's cloud service."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--articles", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparse-first-half", action="store_true", help="no labels, DOIs, mentions in the first half")
    options = parser.parse_args()
    truth = make_bucket(options.folder, options.articles, options.seed, options.sparse_first_half)
    fates = truth.fates()
    print(
        f"{options.folder}: {sum(fates['versions'].values())} article versions, {len(truth.figures())} figures to find"
    )
    for unit, counts in fates.items():
        print(f"  {unit}: " + ", ".join(f"{reason} {n}" for reason, n in counts.most_common()))


if __name__ == "__main__":
    main()
