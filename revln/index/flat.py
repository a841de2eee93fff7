"""Rows that are searched exactly: unit-norm vectors under the log's ``seq``, in blocks that only grow.

They are our own arrays, searched by faiss's kernels (`faiss.knn`), not a faiss index: so a row is stored once, can be
read back, and a subset can be searched without a copy of the rest.

A dead row is overwritten by NaN. No comparison with NaN is true, so it never enters a result, whatever k is; nothing is
moved and no selector is asked about every row.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

__all__ = ["FlatRows", "Found", "best", "cosines"]

Found = tuple[NDArray[np.float32], NDArray[np.int64]]

_FIRST_ROWS = 1_024
_BLOCK_BYTES = 128 * 2**20  # a block is copied when it grows, and when half of it is dead: 128 MB take about 50 ms
_FEW_QUERIES = 8  # for so few, testing every row for membership is cheaper than gathering the rows that are allowed
_MARGIN = 8  # rows asked for beyond k: the kernels' scores differ in the last bit, and ties go to the older row
_ROUNDING = 2e-6
_GATHER_BYTES = 32 * 2**20  # of rows copied at once to be scored again


class _Block:
    """Up to ``most`` rows; ``seqs`` ascend, so a row is found by bisection."""

    def __init__(self, dim: int, most: int) -> None:
        self.most = most
        self.used = self.dead = 0
        self._owner: object = None
        self._seqs = np.empty(min(_FIRST_ROWS, most), dtype=np.int64)
        self._rows = np.empty((len(self._seqs), dim), dtype=np.float32)

    @property
    def seqs(self) -> NDArray[np.int64]:
        return self._seqs[: self.used]

    @property
    def rows(self) -> NDArray[np.float32]:
        return self._rows[: self.used]

    @classmethod
    def around(cls, seqs: NDArray[np.int64], rows: NDArray[np.float32], owner: object) -> _Block:
        """A full block of rows that are there already, in memory that ``owner`` keeps."""
        block = cls(rows.shape[1], 1)
        block.most = block.used = len(seqs)
        block._seqs, block._rows, block._owner = seqs, rows, owner
        return block

    def append(self, seqs: NDArray[np.int64], rows: NDArray[np.float32]) -> int:
        """Take as many as fit; how many."""
        taken = min(len(seqs), self.most - self.used)
        end = self.used + taken
        if end > len(self._seqs):
            self._resize(min(self.most, max(end, 2 * len(self._seqs))))
        self._seqs[self.used : end] = seqs[:taken]
        self._rows[self.used : end] = rows[:taken]
        self.used = end
        return taken

    def _resize(self, capacity: int, kept: NDArray[np.bool_] | slice = slice(None)) -> None:
        seqs, rows = self.seqs[kept], self.rows[kept]
        self.used = len(seqs)
        self._seqs = np.empty(capacity, dtype=np.int64)
        self._rows = np.empty((capacity, rows.shape[1]), dtype=np.float32)
        self._seqs[: self.used], self._rows[: self.used] = seqs, rows
        self._owner = None

    def places(self, seqs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where those of the seqs that are stored here are stored."""
        if not self.used or not len(seqs):
            return np.empty(0, dtype=np.int64)
        places = np.searchsorted(self.seqs, seqs)
        places[places == self.used] = 0
        return np.asarray(places[self.seqs[places] == seqs])

    def kill(self, seqs: NDArray[np.int64]) -> int:
        places = self.places(seqs)
        self._rows[places] = np.nan
        self.dead += len(places)
        if self.dead * 2 > self.used:
            live = ~np.isnan(self.rows[:, 0])
            self._resize(max(int(live.sum()), min(_FIRST_ROWS, self.most)), live)
            self.dead = 0
        return len(places)


class FlatRows:
    """Exact inner-product search over rows that come in the order of their seqs. Not locked: see `CollectionIndex`."""

    def __init__(self, dim: int, block_bytes: int = _BLOCK_BYTES) -> None:
        self.dim = dim
        self._block_rows = max(block_bytes // (4 * dim), 1)
        self._blocks: list[_Block] = []
        self._last_seq = 0

    def __len__(self) -> int:
        return sum(block.used - block.dead for block in self._blocks)

    def append(self, seqs: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Add (N, D) vectors under (N,) ascending seqs, all newer than what is here."""
        assert vectors.shape == (len(seqs), self.dim)
        if not len(seqs):
            return
        assert seqs[0] > self._last_seq
        assert (np.diff(seqs) > 0).all()
        self._last_seq = int(seqs[-1])
        while len(seqs):
            if not self._blocks or self._blocks[-1].used == self._blocks[-1].most:
                self._blocks.append(_Block(self.dim, self._block_rows))
            taken = self._blocks[-1].append(seqs, vectors)
            seqs, vectors = seqs[taken:], vectors[taken:]

    def adopt(self, seqs: NDArray[np.int64], rows: NDArray[np.float32], owner: object) -> None:
        """Take rows as they lie in memory that ``owner`` keeps, without a copy. They will be written to."""
        assert not self._blocks
        for at in range(0, len(seqs), self._block_rows):
            part = slice(at, at + self._block_rows)
            self._blocks.append(_Block.around(seqs[part], rows[part], owner))
            self._last_seq = int(self._blocks[-1].seqs[-1])

    def kill(self, seqs: NDArray[np.int64]) -> int:
        """Forget rows; how many of them were here. No seq may be given twice."""
        killed = sum(block.kill(seqs) for block in self._blocks)
        self._blocks = [block for block in self._blocks if block.used]
        return killed

    def live_seqs(self) -> NDArray[np.int64]:
        parts = [block.seqs[~np.isnan(block.rows[:, 0])] for block in self._blocks]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def get(self, seqs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Those of the ascending seqs that are live here, and their vectors."""
        found_seqs, found_rows = [np.empty(0, dtype=np.int64)], [np.empty((0, self.dim), dtype=np.float32)]
        for block in self._blocks:
            places = block.places(seqs)
            places = places[~np.isnan(block.rows[places, 0])]
            found_seqs.append(block.seqs[places])
            found_rows.append(block.rows[places])
        return np.concatenate(found_seqs), np.concatenate(found_rows)

    def search(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.int64] | None = None) -> Found:
        """The k best rows for each of (N, D) queries: scores and seqs, (N, ≤ k), best first, ties by the older row.

        Where there are fewer than k, the seq is -1. ``allowed``: ascending seqs; no other row is found.
        """
        parts = [self._search_block(block, queries, k, allowed) for block in self._blocks]
        if not parts:
            return np.empty((len(queries), 0), dtype=np.float32), np.empty((len(queries), 0), dtype=np.int64)
        scores, seqs = (np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True))
        return best(scores, seqs, k)

    def _search_block(
        self, block: _Block, queries: NDArray[np.float32], k: int, allowed: NDArray[np.int64] | None
    ) -> Found:
        places = None if allowed is None else block.places(allowed)
        count = block.used if places is None else len(places)
        wanted = min(k + _MARGIN, count)
        if not wanted:
            return np.empty((len(queries), 0), dtype=np.float32), np.empty((len(queries), 0), dtype=np.int64)
        if places is None:
            _, found = faiss.knn(queries, block.rows, wanted, metric=faiss.METRIC_INNER_PRODUCT)
        elif len(queries) >= _FEW_QUERIES or count * 8 < block.used:
            _, found = faiss.knn(queries, block.rows[places], wanted, metric=faiss.METRIC_INNER_PRODUCT)
            found = np.where(found >= 0, places[found], -1)
        else:
            found = _search_members(queries, block.rows, wanted, places)
        scores = cosines(queries, block.rows, found)
        if wanted < count:
            self._look_for_ties(block, queries, scores, found, places, k)
        return scores, np.where(found >= 0, block.seqs[found], -1)

    def _look_for_ties(
        self,
        block: _Block,
        queries: NDArray[np.float32],
        scores: NDArray[np.float32],
        found: NDArray[np.int64],
        places: NDArray[np.int64] | None,
        k: int,
    ) -> None:
        """Where what was asked for beyond k still ties with the k-th, more rows may: look at all of them."""
        lowest = scores.min(axis=1)
        kth = -np.partition(-scores, k - 1, axis=1)[:, k - 1]
        for row in np.flatnonzero((lowest > -np.inf) & (kth - lowest <= _ROUNDING)):
            at = np.arange(block.used) if places is None else places
            exact = np.round(np.einsum("d,kd->k", queries[row], block.rows[at]), 6)
            exact[np.isnan(exact)] = -np.inf
            order = np.lexsort((at, -exact))[: scores.shape[1]]
            scores[row], found[row] = exact[order], at[order]


def cosines(queries: NDArray[np.float32], rows: NDArray[np.float32], found: NDArray[np.int64]) -> NDArray[np.float32]:
    """The (N, M) cosines of what was found, -inf where nothing was.

    By one kernel for every row: faiss's round differently by a row's place, and equal vectors must score alike.
    """
    scores = np.empty(found.shape, dtype=np.float32)
    together = max(_GATHER_BYTES // (4 * rows.shape[1] * max(found.shape[1], 1)), 1)
    for at in range(0, len(queries), together):
        part = slice(at, at + together)
        scores[part] = np.einsum("nd,nkd->nk", queries[part], rows[found[part]])
    scores = np.round(scores, 6)
    scores[found < 0] = -np.inf
    return scores


def _search_members(
    queries: NDArray[np.float32], rows: NDArray[np.float32], k: int, places: NDArray[np.int64]
) -> NDArray[np.int64]:
    """`faiss.knn` over some of the rows, by a bitmap of their places: (N, k) places, -1 where there are fewer."""
    members = np.zeros(len(rows), dtype=np.bool_)
    members[places] = True
    bitmap = np.packbits(members, bitorder="little")
    selector = faiss.IDSelectorBitmap(len(bitmap), faiss.swig_ptr(bitmap))
    queries = np.ascontiguousarray(queries)
    scores = np.empty((len(queries), k), dtype=np.float32)
    found = np.empty((len(queries), k), dtype=np.int64)
    faiss.knn_inner_product(
        faiss.swig_ptr(queries), faiss.swig_ptr(rows), rows.shape[1], len(queries), len(rows), k,
        faiss.swig_ptr(scores), faiss.swig_ptr(found), selector,
    )  # fmt: skip
    return found


def best(scores: NDArray[np.float32], seqs: NDArray[np.int64], k: int) -> Found:
    """The k best of each row of (N, M) scores, best first, ties by the older seq."""
    order = np.lexsort((seqs, -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(seqs, order, axis=1)
