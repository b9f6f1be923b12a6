"""What may be removed from a root: only what neither the last run, nor this configuration, nor their
making refers to.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from biomedclip_ray.run.prune import find_unused, prune
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.lease import HeldError, Lease
from biomedclip_ray.store.ledger import Count
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product


def _finished(
    root: Path, stage: str, name: str, inputs: tuple[Product, ...] = (), parent: Product | None = None
) -> Product:
    product = Product.plan(str(root), stage, 1, {"name": name}, list(inputs))
    with attempt(product) as current:
        product.place.write("data/x", b"0" * 1000)
        extra = {"parent": {"stage": stage, "fingerprint": parent.fingerprint}} if parent else None
        current.finish([Count("pair")], extra)
    return product


def _name(product: Product) -> str:
    return f"{product.stage}/{product.fingerprint}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """run.json names the newest corpus; its pairs have a parent, which has one too; another
    configuration is planned.
    """
    oldest = _finished(tmp_path, "preprocess", "oldest")
    parent = _finished(tmp_path, "preprocess", "parent", parent=oldest)
    pairs = _finished(tmp_path, "preprocess", "pairs", parent=parent)
    corpus = _finished(tmp_path, "curate", "corpus", (pairs,))
    _finished(tmp_path, "curate", "stale", (oldest,))
    Product.plan(str(tmp_path), "train", 1, {"name": "interrupted"}, [corpus]).place.write("metrics.jsonl", b"{}")
    stages = [{"name": "curate", "product": corpus.uri}, {"name": "deploy", "product": None}]
    record = {"inventories": {}, "known": {}, "stages": stages}
    (tmp_path / "run.json").write_text(json.dumps(record))
    return tmp_path


def _plan(root: Path, stage: str, name: str, *inputs: Product) -> Product:
    return Product.plan(str(root), stage, 1, {"name": name}, list(inputs))


def test_what_the_last_run_used_and_its_parents_stay(root: Path) -> None:
    oldest = _plan(root, "preprocess", "oldest")
    corpus = _plan(root, "curate", "corpus", _plan(root, "preprocess", "pairs"))
    unused = {product.name: product for product in find_unused(str(root))}
    stale, interrupted = _plan(root, "curate", "stale", oldest), _plan(root, "train", "interrupted", corpus)
    assert set(unused) == {_name(oldest), _name(stale), _name(interrupted)}
    assert unused[_name(stale)].bytes > 1000
    assert unused[_name(stale)].made.startswith("20")
    assert unused[_name(interrupted)].made == ""


def test_what_the_configuration_would_use_stays_with_all_that_it_was_made_from(root: Path) -> None:
    oldest = _plan(root, "preprocess", "oldest")
    stale = _plan(root, "curate", "stale", oldest)
    assert {product.name for product in find_unused(str(root), [stale.uri])} & {_name(stale), _name(oldest)} == set()


def test_what_is_no_product_is_never_touched(root: Path) -> None:
    before = find_unused(str(root))
    for name in ("train/images/a.png", "evaluate/notes/n.txt", "train/0123456789abc/x"):
        Place(str(root)).write(name, b"mine")
    assert find_unused(str(root)) == before
    told = io.StringIO()
    prune(str(root), [], None, Console(file=told, width=140))
    assert before[0].name in told.getvalue() and "Removed" not in told.getvalue()
    assert find_unused(str(root)) == before


def test_nothing_is_removed_while_a_driver_works_there(root: Path) -> None:
    busy = _plan(root, "train", "interrupted", _plan(root, "curate", "corpus", _plan(root, "preprocess", "pairs")))
    with Lease(busy.place, "train"), pytest.raises(HeldError, match="nothing is removed while a driver works"):
        find_unused(str(root))
    assert busy.place.exists("metrics.jsonl")


def test_without_a_terminal_they_are_only_shown_and_with_yes_removed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    told = io.StringIO()
    before = Place(str(root)).list()
    prune(str(root), [], False, Console(file=told, width=140))
    assert Place(str(root)).list() == before
    stale = _plan(root, "curate", "stale", _plan(root, "preprocess", "oldest"))
    assert _name(stale) in told.getvalue()
    assert "Nothing was removed; add --yes" in told.getvalue()
    prune(str(root), [], True, Console(file=told, width=140))
    assert "Removed 3 products" in told.getvalue()
    kept = {
        f"{stage}/{name}" for stage in ("preprocess", "curate", "train") for name in Place(f"{root}/{stage}").folders()
    }
    assert len(kept) == 3
    assert find_unused(str(root)) == []
    prune(str(root), [], True, Console(file=told, width=140))
    assert "is used" in told.getvalue()
