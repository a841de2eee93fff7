"""An index that replays a log always answers as a dictionary searched by brute force does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from revln.index.collection import CollectionIndex
from revln.index.flat import FlatRows

DIM = 8
NONE = np.array([], dtype=np.int64)


def unit(seed: int) -> NDArray[np.float32]:
    vector = np.random.default_rng(seed).standard_normal(DIM)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def small_blocks(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("revln.index.collection.FlatRows", lambda dim: FlatRows(dim, block_bytes=rows * dim * 4))


def brute_force(vectors: dict[int, NDArray[np.float32]], query: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
    scored = [(seq, round(float(np.float32(vector @ query)), 6)) for seq, vector in vectors.items()]
    return sorted(scored, key=lambda hit: (-hit[1], hit[0]))[:k]


# An operation: (item, seed of its vector), or (item, None) to delete it; and after how many of them to replay.
operations = st.lists(st.tuples(st.integers(0, 12), st.none() | st.integers(0, 10_000)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(
    operations=operations,
    stride=st.integers(1, 17),
    k=st.integers(1, 20),
    queries=st.lists(st.integers(0, 99), min_size=1, max_size=12),
    block=st.integers(1, 20),
    allowed=st.none() | st.sets(st.integers(1, 60)),
)
def test_replaying_any_log_in_any_stretches_equals_brute_force(
    operations: list[tuple[int, int | None]],
    stride: int,
    k: int,
    queries: list[int],
    block: int,
    allowed: set[int] | None,
) -> None:
    live: dict[int, int] = {}  # item → seq
    vectors: dict[int, NDArray[np.float32]] = {}  # seq → vector
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, block)
        index = CollectionIndex(DIM)
    log: list[tuple[int, NDArray[np.float32] | None, int | None]] = []
    for seq, (item, seed) in enumerate(operations, start=1):
        replaced = live.pop(item, None)
        vector = unit(seed) if seed is not None else None
        if vector is not None:
            live[item], vectors[seq] = seq, vector
        log.append((seq, vector, replaced))
    for start in range(0, len(log), stride):
        part = log[start : start + stride]
        added = [(seq, vector) for seq, vector, _ in part if vector is not None]
        index.apply(
            np.array([seq for seq, _ in added], dtype=np.int64),
            np.array([vector for _, vector in added], dtype=np.float32).reshape(-1, DIM),
            np.array([replaced for _, _, replaced in part if replaced is not None], dtype=np.int64),
            part[-1][0],
        )
    assert len(index) == len(live)
    assert index.seq == len(log)
    assert index.live_seqs().tolist() == sorted(live.values())
    seqs, found_vectors = index.vectors_of(np.arange(1, 61))
    assert seqs.tolist() == sorted(live.values())
    assert all(np.array_equal(vectors[seq], found) for seq, found in zip(seqs.tolist(), found_vectors, strict=True))
    searched = {seq: vectors[seq] for seq in live.values() if allowed is None or seq in allowed}
    targets = np.stack([unit(seed) for seed in queries])
    only = None if allowed is None else np.array(sorted(allowed), dtype=np.int64)
    for target, found in zip(targets, index.search(targets, k, allowed=only), strict=True):
        expected = brute_force(searched, target, k)
        assert {seq for seq, _ in found} <= set(searched)
        assert np.allclose([score for _, score in found], [score for _, score in expected], atol=2e-6)
        assert len(found) == len(expected)


@pytest.mark.parametrize("n_queries", [1, 30])
@pytest.mark.parametrize("only", [None, range(1, 400), range(1, 3000, 2)])
def test_equal_scores_come_in_the_order_of_the_log_however_many_there_are(n_queries: int, only: range | None) -> None:
    index = CollectionIndex(DIM)
    same = unit(1)
    index.apply(np.arange(1, 3001), np.stack([same] * 3000), NONE, 3000)
    index.apply(NONE, np.empty((0, DIM), dtype=np.float32), np.array([2, 5]), 3001)
    allowed = None if only is None else np.array(only)
    expected = [seq for seq in (only or range(1, 3001)) if seq not in (2, 5)][:7]
    for found in index.search(np.stack([same] * n_queries), 7, allowed=allowed):
        assert [seq for seq, _ in found] == expected


def test_an_empty_index_finds_nothing() -> None:
    assert CollectionIndex(DIM).search(np.stack([unit(1), unit(2)]), 3) == [[], []]


def test_k_above_the_count_finds_all_there_is() -> None:
    index = CollectionIndex(DIM)
    index.apply(np.array([3, 9]), np.stack([unit(1), unit(2)]), NONE, 9)
    assert [len(found) for found in index.search(unit(1)[None], 1000)] == [2]
    assert index.search(unit(1)[None], 1000, allowed=np.array([4])) == [[]]


def test_when_most_rows_are_dead_the_right_ones_are_left() -> None:
    index = CollectionIndex(DIM)
    rows = np.stack([unit(n) for n in range(3000)])
    index.apply(np.arange(1, 3001), rows, NONE, 3000)
    index.apply(NONE, np.empty((0, DIM), dtype=np.float32), np.arange(1, 2501), 3001)
    assert len(index) == 500
    assert index.search(rows[2999][None], 1)[0][0][0] == 3000
    assert index.search(rows[0][None], 1)[0][0][0] > 2500
