"""Corpus and pairs go row by row: row i of a part of the one judges row i of the same part of the other."""

from __future__ import annotations

import pyarrow as pa

from biomedclip_ray.store.product import Product


def check_aligned(corpus: Product, pairs: Product, part: int, judged: pa.Table, facts: pa.Table) -> None:
    """Whether what was read of a part of both products, column `pair_id` among it, is of the same pairs.

    Raises:
        RuntimeError: it is not; names both products and the way out.
    """
    if judged["pair_id"] != facts["pair_id"]:
        raise RuntimeError(
            f"part {part}: {corpus.uri} and {pairs.uri} are not aligned: curate ran over other pairs; run it on these"
        )
