"""The search for near copies gives brute force's answer, crowds of blank images included."""

import numpy as np

from biomedclip_ray.evaluate.leakage import NEAR_BITS, NearSearch


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
