"""The order of training is arithmetic: every row once an epoch, the same batches for any number of
workers, resumable.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biomedclip_ray.train.order import Order, deal, mix, shuffle_quality, total_steps

orders = st.builds(
    lambda chunks, window, seed: Order(np.array(chunks, np.int64), window, seed),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(1, 300),
    st.integers(0, 2**31),
)


@settings(max_examples=60, deadline=None)
@given(orders, st.integers(0, 5))
def test_each_row_comes_once_in_every_epoch(order, epoch):
    size = order.rows_per_epoch
    rows = order.rows(epoch * size, (epoch + 1) * size)
    assert sorted(rows) == list(range(size))


@settings(max_examples=60, deadline=None)
@given(orders, st.lists(st.integers(0, 500), min_size=2, max_size=8))
def test_any_cut_of_the_sequence_gives_the_same_rows(order, cuts):
    cuts = sorted(cuts)
    whole = order.rows(cuts[0], cuts[-1])
    pieces = np.concatenate([order.rows(a, b) for a, b in itertools.pairwise(cuts)])
    assert np.array_equal(whole, pieces)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 50), st.integers(1, 12), st.integers(1, 12))
def test_the_ranks_of_any_world_take_each_block_of_a_step_once_and_in_turn(first, micro, world):
    world = min(world, micro)
    stream = [(step, j) for step in range(first, first + 6) for j in range(micro)]
    for rank in range(world):
        mine = [(step, j) for step in range(first, first + 6) for j in deal(step - first, micro, world)[rank]]
        assert mine == stream[rank::world]  # what Ray deals: block k of the feed to rank k mod world
    shares = [len(blocks) for blocks in deal(3, micro, world)]
    assert sum(shares) == micro and max(shares) - min(shares) <= 1 and min(shares) >= 1
    if micro % world == 0:
        assert deal(3, micro, world) == [list(range(rank, micro, world)) for rank in range(world)]


@settings(max_examples=40, deadline=None)
@given(orders, st.integers(0, 400), st.integers(1, 400))
def test_spans_cover_the_range_and_never_cross_a_window(order, start, length):
    spans = order.spans(start, start + length)
    assert spans[0][0] == start and spans[-1][1] == start + length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    assert all(a // order.window == (b - 1) // order.window for a, b in spans)


def test_epochs_and_seeds_differ_and_a_seed_repeats():
    chunks = np.full(20, 50)
    first = Order(chunks, 256, 7)
    size = first.rows_per_epoch
    assert np.array_equal(first.rows(0, size), Order(chunks, 256, 7).rows(0, size))
    assert not np.array_equal(first.rows(0, size), first.rows(size, 2 * size))
    assert not np.array_equal(first.rows(0, size), Order(chunks, 256, 8).rows(0, size))


def test_the_order_never_changes_between_releases():
    order = Order(np.array([3, 5, 2, 6]), 7, 42)
    assert order.rows(0, 20).tolist() == GOLDEN
    assert [int(x) for x in mix(1, 2, np.arange(2))] == GOLDEN_MIX


GOLDEN = [11, 10, 12, 8, 13, 9, 14, 6, 5, 0, 7, 3, 15, 4, 1, 2, 4, 2, 1, 0]
GOLDEN_MIX = [16613338946343043936, 13264548337748323810]


def test_a_window_reads_no_more_row_groups_than_it_holds():
    order = Order(np.full(100, 64), 640, 0)
    for start, stop in order.spans(0, 6400):
        assert len(np.unique(order.chunk_of(order.rows(start, stop)))) <= 11


def test_windows_shuffle_as_well_as_a_full_shuffle_where_articles_lie_by_hash():
    articles = np.repeat(np.arange(4000), 5)
    quality = shuffle_quality(Order(np.full(100, 200), 4000, 3), articles, 256)
    assert abs(quality["neighbour_correlation"]) < 0.1
    assert quality["articles_per_batch"] > 0.9 * quality["articles_per_batch_ideal"]  # a window is a fifth of the epoch
    unshuffled = shuffle_quality(Order(np.full(100, 200), 1, 3), articles, 256)
    assert unshuffled["neighbour_correlation"] > 0.9
    assert unshuffled["articles_per_batch"] < 0.3 * unshuffled["articles_per_batch_ideal"]


def test_epochs_need_not_be_multiples_of_the_batch_and_no_row_is_cut_off():
    assert total_steps(1000, 1, 128) == 8
    assert total_steps(1000, 2, 128) == 16
    assert total_steps(1000, 0.5, 128) == 4
    assert total_steps(3, 1, 128) == 1


@pytest.mark.parametrize(("chunks", "window"), [([], 4), ([3, 0], 4), ([3], 0)])
def test_an_empty_order_is_refused(chunks, window):
    with pytest.raises(ValueError, match="at least one row"):
        Order(np.array(chunks, np.int64), window, 0)
