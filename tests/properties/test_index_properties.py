"""A flat index that replays a log always answers as a dictionary searched by brute force does."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from revln.index.flat import FlatIndex

DIM = 8


def unit(seed: int) -> NDArray[np.float32]:
    vector = np.random.default_rng(seed).standard_normal(DIM)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


# An operation: (item, seed of its vector), or (item, None) to delete it; and after how many of them to replay.
operations = st.lists(st.tuples(st.integers(0, 12), st.none() | st.integers(0, 10_000)), max_size=60)


@settings(max_examples=80, deadline=None)
@given(operations=operations, stride=st.integers(1, 17), k=st.integers(1, 20), query=st.integers(0, 99))
def test_replaying_any_log_in_any_stretches_equals_brute_force(
    operations: list[tuple[int, int | None]], stride: int, k: int, query: int
) -> None:
    live: dict[int, int] = {}  # item → seq
    vectors: dict[int, NDArray[np.float32]] = {}  # seq → vector
    index = FlatIndex(DIM)
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
    target = unit(query)
    found = index.search(target[None], k)[0]
    scores = {seq: float(vectors[seq] @ target) for seq in live.values()}
    assert len(index) == len(live)
    assert index.seq == len(log)
    assert len(found) == min(k, len(live))
    assert {seq for seq, _ in found} <= set(scores)
    best = sorted(scores.values(), reverse=True)[:k]
    assert np.allclose([score for _, score in found], best, atol=1e-5)


def test_equal_scores_come_in_the_order_of_the_log() -> None:
    index = FlatIndex(DIM)
    same = unit(1)
    index.apply(np.arange(5, 0, -1), np.stack([same] * 5), np.array([], dtype=np.int64), 5)
    assert [seq for seq, _ in index.search(same[None], 5)[0]] == [1, 2, 3, 4, 5]


def test_an_empty_index_finds_nothing() -> None:
    assert FlatIndex(DIM).search(np.stack([unit(1), unit(2)]), 3) == [[], []]


def test_more_voids_than_are_removed_together_leave_the_right_rows() -> None:
    index = FlatIndex(DIM)
    rows = np.stack([unit(n) for n in range(3000)])
    none = np.array([], dtype=np.int64)
    index.apply(np.arange(1, 3001), rows, none, 3000)
    index.apply(none, np.empty((0, DIM), dtype=np.float32), np.arange(1, 2501), 3001)
    assert len(index) == 500
    assert index.search(rows[2999][None], 1)[0][0][0] == 3000
    assert index.search(rows[0][None], 1)[0][0][0] > 2500
