"""The search for near copies gives brute force's answer, crowds of blank images included."""

import io

import numpy as np
import pyarrow as pa
from PIL import Image

from biomedclip_ray.evaluate.leakage import CANDIDATES, NEAR_BITS, NearSearch, near_copies
from biomedclip_ray.evaluate.readers import Images
from biomedclip_ray.store.attempt import attempt
from biomedclip_ray.store.ledger import Ledger
from biomedclip_ray.store.product import Product
from tests.evaluate.conftest import pixels, png


def test_the_search_finds_what_brute_force_finds():
    random = np.random.default_rng(0)
    ours, theirs = (random.integers(0, 2**64, size, np.uint64) for size in (1500, 20_000))
    theirs[:600] = ours[:600]
    for _ in range(7):  # 0 to 7 flips
        flipped = random.random(600) < 0.7
        theirs[:600][flipped] ^= np.uint64(1) << random.integers(0, 64, int(flipped.sum())).astype(np.uint64)
    theirs[-3000:], ours[-40:] = 0, 1  # blank images: a crowd in every piece of the hash
    expected = np.zeros(1500, bool)
    for start in range(0, 20_000, 1000):
        expected |= (np.bitwise_count(ours[:, None] ^ theirs[start : start + 1000]) <= NEAR_BITS).any(axis=1)
    search = NearSearch(ours)
    for part in np.array_split(theirs, 3):
        search.look_in(part)
    np.testing.assert_array_equal(search.found, expected)
    assert 40 < expected.sum() < 640
    rows, names = search.candidates()
    assert set(rows) == set(np.flatnonzero(expected)) and np.bincount(rows).max() == CANDIDATES
    parts = np.concatenate([np.arange(len(part)) for part in np.array_split(theirs, 3)])
    assert set(names) <= set(parts)


def test_a_hash_is_confirmed_by_pixels(tmp_path):
    """Three images of the set share their hash with training: a copy, a plot on white that is another, and none."""
    copy, other = (np.asarray(Image.fromarray(pixels(c, c)).resize((192, 192))) for c in (0, 1))
    training = [png(copy), png(other)]
    pairs = finished(str(tmp_path), "preprocess", [], [pairs_of(training, [1, 2])])
    corpus = finished(str(tmp_path), "curate", [pairs], [corpus_of(["train", "train"])])
    bundle = finished(str(tmp_path), "train", [pairs, corpus], [pa.table({"step": [1]})])
    ours = [jpeg(copy), png(pixels(2, 3)), png(pixels(2, 4))]
    images = Images(3, lambda start, stop: list(ours[start:stop]))
    found = near_copies(np.array([1, 2, 2**64 - 1], np.uint64), images, bundle)
    assert found is not None
    assert found.near.tolist() == [True, True, False]
    assert found.same.tolist() == [True, False, False]


def pairs_of(images, hashes):
    return pa.table({"pair_id": ["a", "b"], "image": images, "phash": pa.array(hashes, pa.uint64())})


def corpus_of(splits):
    return pa.table({"pair_id": ["a", "b"], "split": splits, "kept": [True] * len(splits)})


def jpeg(image):
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def finished(root, stage, inputs, tables):
    product = Product.plan(root, stage, 1, {}, inputs)
    with attempt(product, len(tables)) as current:
        for part, table in enumerate(tables):
            ledger = Ledger(stage)
            ledger.count("pair", table.num_rows, table.num_rows)
            current.write_part(part, table, ledger.table(), ledger.counts)
        current.finish_parts(0.0)
    return product
