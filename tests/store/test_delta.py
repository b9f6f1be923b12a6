"""What a delta is made from: the nearest inventory whose product was finished."""

from __future__ import annotations

from pathlib import Path

from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.delta import finished_before, unchanged
from biomedclip_ray.store.ledger import Count
from biomedclip_ray.store.product import Product


def _catalog(root: Path, date: str, parent: Product | None) -> Product:
    product = Product.plan(str(root), "catalog", 1, {"date": date}, [])
    with attempt(product) as current:
        current.finish(
            [Count("x")], {"parent": {"stage": "catalog", "fingerprint": parent.fingerprint}} if parent else None
        )
    return product


def test_a_delta_that_ended_half_way_is_passed_over(tmp_path: Path) -> None:
    def plan(source: Product) -> Product:
        return Product.plan(str(tmp_path), "ingest", 1, {}, [source])

    first = _catalog(tmp_path, "1", None)
    second = _catalog(tmp_path, "2", first)
    third = _catalog(tmp_path, "3", second)
    assert finished_before(third, plan) == (None, None)
    with attempt(done := plan(first)) as current:
        current.finish([Count("x")])
    found, product = finished_before(third, plan)
    assert found is not None and product is not None
    assert (found.fingerprint, product.fingerprint) == (first.fingerprint, done.fingerprint)
    with attempt(nearer := plan(second)) as current:
        current.finish([Count("x")])
    found, product = finished_before(third, plan)
    assert found is not None and product is not None
    assert (found.fingerprint, product.fingerprint) == (second.fingerprint, nearer.fingerprint)
    assert finished_before(first, plan) == (None, None)


def test_an_object_put_again_with_the_same_etag_has_not_changed() -> None:
    entry = {"key": "a", "etag": "1", "last_modified": "2026-11-01"}
    assert unchanged([entry], [entry | {"last_modified": "2026-11-02"}])
    assert not unchanged([entry], [entry | {"etag": "2"}]) and not unchanged(None, [entry])
