"""The flags of workflows/biomedclip.py."""

from __future__ import annotations

import argparse

from biomedclip_ray.config import STAGES

MIRROR = "mirror"
MEDIA = ("figures", "all")


def parse(arguments: list[str], description: str | None) -> argparse.Namespace:
    """The options of a command line; one that does not make sense ends the program (exit code 2)."""
    parser = argparse.ArgumentParser(
        prog="biomedclip.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="YAML file, for example workflows/configs/sample.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.lr=3e-4")
    parser.add_argument(
        "--only",
        choices=(*STAGES, MIRROR),
        help="this stage alone, those before it must be finished; mirror copies what is selected to --out, in the "
        "bucket's "
        "layout, and goes no further",
    )
    parser.add_argument("--from", dest="start", choices=STAGES, help="begin here; the stages before must be finished")
    parser.add_argument("--until", choices=STAGES, help="stop after this stage")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would run or be skipped, and why; start nothing"
    )
    parser.add_argument(
        "--cluster",
        metavar="FILE",
        help="what the cluster is made from, a launcher's YAML or a KubeRay manifest: what nodes may come is read "
        "there instead "
        "of from the autoscaler; with --dry-run no cluster is needed",
    )
    parser.add_argument("--list", action="store_true", help="list the products in the root, their size and their users")
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar="RUN",
        help="two runs of the root side by side, by their ids in root/runs/: what each stage took, kept and reached",
    )
    parser.add_argument("--sync", action="store_true", help="move on to the source's newest inventory")
    parser.add_argument("--hold", action="store_true", help="keep the server up after deploying, until Ctrl-C")
    parser.add_argument(
        "--export",
        choices=("webdataset", "datasets"),
        help="write the kept pairs to --out for others, and train nothing",
    )
    parser.add_argument("--media", choices=MEDIA, help="what --only mirror copies of them (default: figures)")
    parser.add_argument("--out", metavar="URI", help="an empty folder, or what the same command has begun there")
    parser.add_argument(
        "--prune", action="store_true", help="show the products that nothing refers to, and remove them if told so"
    )
    parser.add_argument(
        "--erase",
        metavar="ID",
        help="withdraw an article, a figure, a pair, or a patient of own pairs from every product of the root, and "
        "name the bundles "
        "that were trained on it",
    )
    parser.add_argument("--yes", action="store_true", help="with --prune: remove without asking")
    parser.add_argument(
        "--refusal-is-final",
        action="store_true",
        help="end with 0 where configuration or surroundings are wrong (else 2) or the budget is spent (else 3), for "
        "what starts a failed job again (KubeRay); the run's record says what it was",
    )
    options = parser.parse_intermixed_args(arguments)
    if bool(options.out) != bool(options.export or options.only == MIRROR):
        parser.error("--export and --out go together, and --only mirror and --out")
    if options.export and (options.only or options.until):
        parser.error("--export ends after curate; it goes without --only and --until")
    if options.media and options.only != MIRROR:
        parser.error("--media goes with --only mirror")
    options.media = options.media or MEDIA[0]
    if options.only and (options.start or options.until):
        parser.error("--only goes without --from and --until")
    return options
