"""Every benchmark, one after the other: each ratio as it comes, and one table at the end.

    make bench                                 (installs what is compared with first)
    python benchmarks/bench.py [--quick] [--only SCRIPT ...]

`--quick` runs the small forms, whose ratios say nothing about speed: that everything runs is what they show. Peers that
cannot live beside ours (Makefile says why) have an environment of their own, `.venv-peers`, which falls back on ours
for all else. Exit 1 where a bound is missed, 2 where a benchmark did not run to its end.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).resolve().parent
PEERS = FOLDER.parent / ".venv-peers" / "bin" / "python"
_LINE = re.compile(r"^(?:\w+ )?(?P<name>\w+) ratio=(?P<ratio>[\d.]+)(?P<rest>.*)$", re.M)
_BOUND = re.compile(r"(?:bound|goal)\s*[=<>]*\s*(?P<bound>[\d.]+)")


@dataclass(frozen=True)
class Case:
    """One run of a script."""

    script: str
    full: str = ""
    quick: str = ""
    beside: str = ""
    """Packages whose versions the table shows."""
    apart: bool = False
    """Runs in the peers' own environment."""


CASES = (
    Case("jats.py", quick="--quick", beside="lxml pubmed_parser", apart=True),
    Case("images.py", quick="--rounds 1 --every 25", beside="pillow"),
    Case("tiff.py", quick="--rounds 1 --side 256", beside="tifffile numpy"),
    Case("panels.py", quick="--every 6"),
    Case("panels_layouts.py", quick="--figures 12"),
    Case("kinds.py"),
    Case("inventory.py", quick="--rows 20000"),
    Case("near.py", quick="--most 20000"),
    Case("driver.py", quick="--parts 60"),
    Case("curate.py", quick="--pairs 9000"),
    Case("scale.py", quick="--nodes 2 --parts 30 --only catalog --rate 12"),
    Case("pacing.py", quick="--limits 200 --nodes 2 --seconds 4"),
    Case("plan.py", quick="--articles 60"),
    Case("ingest.py", "--skip daft", "--articles 12 --pairs 1 --memory 6 12 --skip daft", "ray"),
    Case("ingest.py", "--only ratios", "--only ratios --articles 12 --pairs 1", "ray daft pyarrow", apart=True),
    Case("feed.py", quick="--pairs 4096 --steps 6", beside="ray torch"),
    Case("loss_memory.py", quick="--batches 4096", beside="open_clip_torch torch"),
    Case("train_vs_open_clip.py", quick="--quick --rounds 1 --steps 1", beside="open_clip_torch torch"),
    Case("embed.py", quick="--tower small --pairs 2 --turns 1", beside="torch"),
    Case("forward.py", quick="--config ViT-S-32-alt --batch 2 --seconds 0.1 --turns 1", beside="open_clip_torch torch"),
    Case("serve.py", quick="--tower small --items 48 --turns 1 --skip peers", beside="torch"),
    Case("search.py", quick="--only search --rows 3000 6000 --width 64", beside="faiss-cpu pylance"),
    Case("train_gpu.py", beside="open_clip_torch torch"),
    Case(
        "ranks.py",
        quick="--sizes 2000 4000 --rounds 1 --faiss-at 2000 --grown 9000 --every 1 --whole 20000 --width 64",
        beside="numpy faiss-cpu",
    ),
    Case("intervals.py", quick="--quick", beside="scipy"),
    Case("leaks.py", quick="--images 2000 --training 20000", beside="numpy"),
    Case("features.py", quick="--images 64 --config sample_64 --pieces 2", beside="torch pillow"),
)


@dataclass(frozen=True)
class Found:
    """A line of the table."""

    script: str
    name: str
    ratio: str
    bound: str
    verdict: str
    versions: str


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the small forms: whether everything runs")
    parser.add_argument("--only", nargs="+", choices=sorted({case.script for case in CASES}), help="these scripts")
    options = parser.parse_args()
    found: list[Found] = []
    for case in CASES:
        if options.only is None or case.script in options.only:
            found += run(case, options.quick)
    table = Table("benchmark", "name", "ratio", "bound", "", "beside", box=SIMPLE_HEAD)
    for line in found:
        table.add_row(line.script, line.name, line.ratio, line.bound, line.verdict, line.versions)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    verdicts = {line.verdict for line in found}
    return 2 if "did not end" in verdicts else int("missed" in verdicts and not options.quick)


def run(case: Case, quick: bool) -> list[Found]:
    """Run a script, its lines shown as they come."""
    if case.apart and not PEERS.exists():
        return [Found(case.script, "", "", "", "no .venv-peers: make bench makes it", case.beside)]
    python = str(PEERS) if case.apart else sys.executable
    command = [python, "-u", str(FOLDER / case.script), *(case.quick if quick else case.full).split()]
    print(f"$ {' '.join(['python', *command[2:]])}".replace(f"{FOLDER.parent}/", ""), flush=True)
    text = ""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            text += line
    told = versions(python, case.beside)
    lines = [read(case, line, process.returncode, told) for line in _LINE.finditer(text)]
    if process.returncode in (0, 1) and lines:
        return lines
    if "no CUDA device" in text:
        return [Found(case.script, "", "", "", "no GPU here", told)]
    return [Found(case.script, "", "", "", "did not end", told)]


def read(case: Case, line: re.Match[str], code: int, told: str) -> Found:
    """A line of a script's output; the script's exit code says whether anything was missed."""
    bound = _BOUND.search(line["rest"])
    shown = bound["bound"] if bound else ""
    at_most = "bound<=" in line["rest"]
    short = bool(bound) and (float(line["ratio"]) > float(shown) if at_most else float(line["ratio"]) < float(shown))
    verdict = "missed" if code == 1 and short else "held" if bound else ""
    return Found(
        case.script, line["name"], line["ratio"], f"{'<=' if at_most else '>='} {shown}" if bound else "", verdict, told
    )


def versions(python: str, packages: str) -> str:
    """`lxml 6.0, pubmed_parser 0.5.1`, of that environment."""
    if not packages:
        return ""
    code = (
        "import sys\nfrom importlib.metadata import PackageNotFoundError, version\n"
        "def told(name):\n"
        "    try: return f'{name} {version(name)}'\n"
        "    except PackageNotFoundError: return f'{name} missing'\n"
        "print(', '.join(map(told, sys.argv[1:])))"
    )
    return subprocess.run([python, "-c", code, *packages.split()], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
