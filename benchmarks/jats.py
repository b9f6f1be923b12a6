"""How long parsing JATS takes, beside what it cannot do without, and beside the parser most pipelines use.

    python benchmarks/jats.py [--data FOLDER] [--quick] [--skip pubmed_parser]

- `jats_full_vs_lxml`: everything extracted, against `lxml.etree.fromstring` of the same bytes. 1.00 would mean that
  captions, mentions and licences cost nothing beyond building the tree; cut reference lists pay for most of them.
- `jats_captions_vs_pubmed_parser`: captions, labels and graphics alone, against pubmed_parser's for the same files
  (of the extra `benchmark`), with its lost and wrong captions counted.

Process time, the two sides alternating, median of the rounds' ratios; with --quick one round over a few articles, which
says nothing about speed. Exit 1 below a bound, 2 where something is missing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from articles import DATA, add_data_option, add_skip_option, compares_with
from lxml import etree

from biomedclip_ray.jats.article import parse_article, parse_figures

BOUNDS = {"jats_full_vs_lxml": 0.55, "jats_captions_vs_pubmed_parser": 1.0}
ROUNDS, QUICK_ARTICLES = 9, 12


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_data_option(parser)
    add_skip_option(parser, "pubmed_parser")
    parser.add_argument("--quick", action="store_true", help="see whether it runs")
    options = parser.parse_args()
    compared = compares_with("pubmed_parser", options)
    articles = real_articles(options.data)
    rounds = 1 if options.quick else ROUNDS
    if options.quick:
        articles = articles[:: len(articles) // QUICK_ARTICLES]
    size = sum(map(len, articles)) / 1e6
    print(f"{len(articles)} articles, {size:.1f} MB, {rounds} alternating rounds, process time")
    ratios = {"jats_full_vs_lxml": side_by_side(parse_article, etree.fromstring, articles, rounds)}
    if compared:
        ratios["jats_captions_vs_pubmed_parser"] = against_pubmed_parser(articles, rounds)
    for name, ratio in ratios.items():
        print(f"{name} ratio={ratio:.2f} (bound {BOUNDS[name]:.2f})")
    return int(any(ratio < BOUNDS[name] for name, ratio in ratios.items()))


def real_articles(data: Path = DATA) -> list[bytes]:
    """The XML of the corpus' full articles; `data` is the folder that holds corpus/."""
    folder = data / "corpus" / "jats"
    articles = []
    for archive in ("jats-dev-400.tar.gz", "jats-2026-24.tar.gz"):
        if not (folder / archive).is_file():
            print(f"{folder / archive} is not there; name the folder that holds corpus/ with --data", file=sys.stderr)
            sys.exit(2)
        with tarfile.open(folder / archive) as tar:
            articles += [tar.extractfile(m).read() for m in tar if m.isfile() and m.size]  # type: ignore[union-attr]
    return articles


def side_by_side(ours: Callable, theirs: Callable, inputs: list, rounds: int) -> float:
    """Median over rounds of (their time / our time) for all inputs; a first round warms both up."""
    ratios = []
    for _ in range(rounds + 1):
        our_time, their_time = seconds(ours, inputs), seconds(theirs, inputs)
        ratios.append(their_time / our_time)
        print(f"  ours {our_time / len(inputs) * 1e3:.2f} ms/article, theirs {their_time / len(inputs) * 1e3:.2f}")
    return statistics.median(ratios[1:])


def seconds(function: Callable, inputs: list) -> float:
    begin = time.process_time()
    for each in inputs:
        function(each)
    return time.process_time() - begin


def against_pubmed_parser(articles: list[bytes], rounds: int) -> float:
    import pubmed_parser

    def captions(path: str) -> list[dict]:
        try:
            return pubmed_parser.parse_pubmed_caption(path) or []
        except Exception:  # it aborts on articles with a figure without graphic or label; counted below as lost
            return []

    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{n}.xml" for n in range(len(articles))]
        for path, xml in zip(paths, articles, strict=True):
            Path(path).write_bytes(xml)
        figures = lost = wrong = 0
        for path, xml in zip(paths, articles, strict=True):
            theirs = {row["fig_id"]: " ".join(row["fig_caption"].split()) for row in captions(path)}
            for figure in parse_figures(xml):
                if figure.caption:
                    figures += 1
                    lost += (figure.xml_id or "") not in theirs
                    wrong += theirs.get(figure.xml_id or "", figure.caption) != figure.caption
        print(f"pubmed_parser: of {figures} captions {lost} lost and {wrong} not as the XML has them")
        return side_by_side(lambda path: parse_figures(Path(path).read_bytes()), captions, paths, rounds)


if __name__ == "__main__":
    sys.exit(main())
