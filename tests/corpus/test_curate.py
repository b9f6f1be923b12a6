"""Groups, splits and duplicates over small corpora whose answer is known, and over random ones whose rules are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biomedclip_ray.config import Curate, Splits
from biomedclip_ray.corpus.groups import (
    NO_EDGES,
    REASONS,
    Edges,
    PairFacts,
    Verdict,
    decide,
    drawn_by,
    leaks,
    shared_texts,
    split_of,
)
from biomedclip_ray.schema import Reason

TRAIN, VALIDATION, TEST = 0, 1, 2


def _facts(
    rows: list[tuple[int, int, int, int]], articles: list[int] | None = None, kinds: list[int] | None = None
) -> PairFacts:
    """Rows of (figure, image, text, split); pair n has hash 2n. Each figure is an article, unless
    `articles` says else.
    """
    figure, picture, text, split = (np.array(column, np.uint64) for column in zip(*rows, strict=True))
    n = len(rows)
    return PairFacts(
        pair=np.arange(n, dtype=np.uint64) * np.uint64(2),
        article=figure if articles is None else np.array(articles, np.uint64),
        figure=figure,
        image=picture,
        text=text,
        kind=np.full(n, -1, np.int8) if kinds is None else np.array(kinds, np.int8),
        split=split.astype(np.int8),
        reason=np.full(n, -1, np.int8),
    )


def _fates(verdict: Verdict) -> list[str]:
    return ["kept" if r < 0 else REASONS[r].value for r in verdict.reason]


def _near(*pairs: tuple[int, int]) -> Edges:
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


def _decide(
    rows: list[tuple[int, int, int, int]], articles: list[int] | None = None, max_group: int = 1000
) -> tuple[Verdict, list[str]]:
    verdict = decide(_facts(rows, articles), Curate(max_group=max_group))
    return verdict, _fates(verdict)


def test_the_same_picture_with_the_same_text_is_kept_once() -> None:
    verdict, fate = _decide([(1, 7, 5, TRAIN), (2, 7, 5, TRAIN), (3, 8, 5, TRAIN)])
    assert fate == ["kept", "duplicate", "kept"]
    assert verdict.group.tolist() == [0, 0, 2]


def test_the_same_picture_with_another_text_stays_in_one_group() -> None:
    verdict, fate = _decide([(1, 7, 5, TRAIN), (2, 7, 6, TRAIN)])
    assert fate == ["kept", "kept"]
    assert verdict.group[0] == verdict.group[1]


def test_a_group_that_spans_splits_is_kept_in_the_highest_only() -> None:
    rows = [(1, 7, 5, TRAIN), (2, 7, 6, VALIDATION), (3, 7, 8, TEST), (4, 9, 5, TRAIN)]
    assert _decide(rows)[1] == ["split_conflict", "split_conflict", "kept", "kept"]


def test_an_article_that_its_source_puts_into_two_splits_is_kept_in_the_higher() -> None:
    rows = [(1, 7, 5, TRAIN), (2, 8, 6, TEST), (3, 9, 7, TRAIN)]
    assert _decide(rows, articles=[4, 4, 5])[1] == ["split_conflict", "kept", "kept"]


def test_groups_chain_through_figures_with_several_pictures() -> None:
    verdict, fate = _decide([(1, 7, 5, TRAIN), (1, 8, 5, TRAIN), (2, 8, 6, TEST)])
    assert len(set(verdict.group.tolist())) == 1
    assert fate == ["split_conflict", "split_conflict", "kept"]


def test_a_component_that_is_too_large_is_dropped_whole() -> None:
    rows = [(n, 7, n, TRAIN) for n in range(4)] + [(9, 8, 9, TRAIN)]
    assert _decide(rows, max_group=3)[1] == ["group_too_large"] * 4 + ["kept"]


def test_a_pair_that_is_not_selected_does_not_take_the_split_from_others() -> None:
    facts = _facts([(1, 7, 5, TRAIN), (2, 7, 6, TEST)])
    facts.reason[1] = REASONS.index(Reason.CURATE_LICENSE)
    assert decide(facts, Curate()).reason.tolist() == [-1, REASONS.index(Reason.CURATE_LICENSE)]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=40
    )
)
def test_no_group_is_kept_in_two_splits_and_no_picture_with_its_text_twice(
    rows: list[tuple[int, int, int, int]],
) -> None:
    verdict, fate = _decide(rows)
    kept = [n for n, f in enumerate(fate) if f == "kept"]
    splits: dict[int, set[int]] = {}
    for n in kept:
        splits.setdefault(int(verdict.group[n]), set()).add(rows[n][3])
    assert all(len(found) == 1 for found in splits.values())
    assert len({(rows[n][1], rows[n][2]) for n in kept}) == len(kept)
    groups = {int(g) for g in verdict.group}
    assert groups == set(splits)  # every group keeps something
    for n, one in enumerate(rows):
        for m, other in enumerate(rows):
            if one[1] == other[1] or one[0] == other[0]:
                assert verdict.group[n] == verdict.group[m]


def test_splits_have_their_shares_and_never_move() -> None:
    splits = Splits(validation=0.05, test=0.15)
    drawn = np.array([split_of(f"PMC{n}", splits) for n in range(20_000)])
    shares = np.bincount(drawn) / len(drawn)
    assert np.allclose(shares, [0.8, 0.05, 0.15], atol=0.01)
    larger = Splits(validation=0.05, test=0.20)
    assert all(split_of(f"PMC{n}", larger) == TEST for n in range(20_000) if drawn[n] == TEST)


def test_an_empty_corpus_has_no_verdict_and_no_leak() -> None:
    nothing = np.zeros(0, np.uint64)
    small = np.zeros(0, np.int8)
    facts = PairFacts(nothing, nothing, nothing, nothing, nothing, small, small, small)
    verdict = decide(facts, Curate())
    assert len(verdict.group) == 0
    assert set(leaks(facts, verdict, NO_EDGES).values()) == {0}


def test_near_pictures_are_one_group_and_with_one_text_kept_once() -> None:
    facts = _facts([(1, 7, 5, TRAIN), (2, 8, 5, TRAIN), (3, 9, 6, TRAIN), (4, 10, 5, TRAIN)])
    verdict = decide(facts, Curate(), _near((0, 1), (1, 2)))
    assert _fates(verdict) == ["kept", "duplicate", "kept", "kept"]
    assert verdict.group.tolist() == [0, 0, 0, 3]


def test_near_pictures_in_two_splits_are_kept_in_the_higher() -> None:
    facts = _facts([(1, 7, 5, TRAIN), (2, 8, 6, TEST)])
    assert _fates(decide(facts, Curate(), _near((0, 1)))) == ["split_conflict", "kept"]


def test_a_leak_of_each_kind_is_counted() -> None:
    facts = _facts([(1, 7, 5, TRAIN), (2, 7, 6, TEST), (3, 8, 6, TRAIN), (4, 9, 6, TEST)], articles=[1, 2, 3, 3])
    everything = Verdict(facts.split, np.array([1, 2, 3, 3]), facts.reason)
    assert leaks(facts, everything, _near((0, 1), (1, 3), (0, 3))) == {
        "articles": 1,
        "groups": 1,
        "pictures": 1,
        "near_pairs": 2,
    }


def test_a_text_under_two_pictures_is_counted_where_its_splits_differ() -> None:
    rows = [(1, 7, 5, TRAIN), (2, 8, 5, TEST), (3, 9, 6, TRAIN), (4, 10, 6, TRAIN), (5, 11, 4, TRAIN), (6, 11, 4, TEST)]
    facts = _facts(rows)
    verdict = decide(facts, Curate())
    assert _fates(verdict) == ["kept", "kept", "kept", "kept", "split_conflict", "kept"]
    assert shared_texts(facts, verdict) == 1


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(0, 4), st.integers(0, 2)), min_size=2, max_size=40
    ),
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=15),
)
def test_whatever_is_near_nothing_leaks(rows: list[tuple[int, int, int, int]], pairs: list[tuple[int, int]]) -> None:
    near = _near(*((a % len(rows), b % len(rows)) for a, b in pairs)) if pairs else NO_EDGES
    facts = _facts(rows)
    verdict = decide(facts, Curate(), near)
    assert leaks(facts, verdict, near) == {"articles": 0, "groups": 0, "pictures": 0, "near_pairs": 0}
    assert (verdict.group[near[0]] == verdict.group[near[1]]).all()


def test_balance_keeps_a_number_or_a_share_of_a_kind_and_more_is_a_superset() -> None:
    rows = [(n, n, n, TRAIN) for n in range(3000)]
    facts = _facts(rows, kinds=[n % 3 - 1 for n in range(3000)])  # -1, chart, gel
    few = decide(facts, Curate(balance={"chart": 100, "gel": 0.25})).reason < 0
    more = decide(facts, Curate(balance={"chart": 200, "gel": 0.5})).reason < 0
    counts = [int(few[facts.kind == kind].sum()) for kind in (-1, 0, 1)]
    assert counts[:2] == [1000, 100]
    assert 210 <= counts[2] <= 290
    assert not (few & ~more).any()
    assert (decide(facts, Curate(balance={"chart": 1, "gel": 0})).reason < 0).sum() == 2000


@pytest.mark.parametrize(
    ("pmcid", "doi", "expected"),
    [
        ("RX20240508593085", "10.1101/2024.05.08.593085", "RX20240508593085"),
        ("PMC11100001", "10.1101/2024.05.08.593085", "RX20240508593085"),  # PubMed Central's copy of it
        ("PMC6400001", "10.1101/486050", "RX486050"),
        ("PMC8400001", "10.64898/2025.12.01.123456", "RX20251201123456"),
        ("PMC7", "10.1101/gr.123456.111", "PMC7"),  # a journal of the same publisher
        ("PMC7", "10.1371/journal.pone.0012255", "PMC7"),
        ("PMC7", None, "PMC7"),
    ],
)
def test_copies_of_a_preprint_share_a_split(pmcid: str, doi: str | None, expected: str) -> None:
    assert drawn_by(pmcid, doi) == expected


def test_an_article_that_names_its_preprint_shares_its_split() -> None:
    preprint = "10.1101/2024.05.08.593085"
    assert drawn_by("PMC7", "10.7554/eLife.1", preprint) == drawn_by("RX20240508593085", preprint)
    assert drawn_by("PMC7", "10.7554/eLife.1", "10.21203/rs.3.rs-1/v1") == "PMC7"  # no server that is read here
