"""Groups of near-duplicates are the components that brute force finds, whatever the sizes of the blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from revln.index import duplicates
from revln.index.collection import CollectionIndex
from revln.index.duplicates import Groups, approximate_pairs, describe, exact_pairs

DIM = 6


def index_of(rows: NDArray[np.float32], dead: list[int]) -> CollectionIndex:
    index = CollectionIndex(DIM)
    index.apply(np.arange(1, len(rows) + 1), rows, np.array(dead, dtype=np.int64), len(rows))
    return index


def by_hand(rows: NDArray[np.float32], seqs: NDArray[np.int64], least: float) -> list[list[int]]:
    """Components by walking from row to row; largest first, then the oldest."""
    near = np.round(rows @ rows.T, 6) >= least
    left, groups = set(seqs.tolist()), []
    while left:
        found, walk = set(), [min(left)]
        while walk:
            at = walk.pop()
            if at in left:
                left.discard(at)
                found.add(at)
                walk += [seq for seq in left if near[at - 1, seq - 1]]
        if len(found) > 1:
            groups.append(sorted(found))
    return sorted(groups, key=lambda group: (-len(group), group[0]))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(2, 40),
    spread=st.floats(0, 0.3),
    least=st.sampled_from([0.9, 0.97, 1.0]),
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 5), st.integers(1, 7), st.integers(2, 4)),
    gone=st.sets(st.integers(1, 40)),
)
def test_groups_are_the_components_of_the_pairs_that_are_near(
    seed: int, count: int, spread: float, least: float, sizes: tuple[int, int, int, int], gone: set[int]
) -> None:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((5, DIM))
    rows = centres[random.integers(0, 5, count)] + spread * random.standard_normal((count, DIM))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    index = index_of(rows, sorted(seq for seq in gone if seq <= count))
    seqs = index.live_seqs()
    expected = by_hand(rows, seqs, least)
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("_SIDE", "_BAND", "_QUERIES", "_FIRST_K"), sizes, strict=True):
            patch.setattr(duplicates, name, size)
        for pairs in (exact_pairs, approximate_pairs):
            groups = Groups(seqs)
            steps = 0

            def step() -> None:
                nonlocal steps
                steps += 1

            for left, right in pairs(index, seqs, least, step):
                groups.join(left, right)
            assert [group.tolist() for group in groups.found()] == expected, pairs
            assert steps or not len(seqs)


def test_the_row_nearest_to_the_mean_stands_for_the_others() -> None:
    angles = np.array([0.0, 0.1, 0.2, 0.2, 0.4])
    rows = np.zeros((5, DIM), dtype=np.float32)
    rows[:, 0], rows[:, 1] = np.cos(angles), np.sin(angles)
    group = describe(index_of(rows, []), np.arange(1, 6))
    assert group is not None
    assert group.representative == 3  # the older of two that are alike
    assert group.members.tolist() == [4, 2, 1, 5]
    assert group.scores == pytest.approx(np.cos([0.0, 0.1, 0.2, 0.2]), abs=1e-6)
    assert describe(index_of(rows, [1, 2, 4, 5]), np.arange(1, 6)) is None
