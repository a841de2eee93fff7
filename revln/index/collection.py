"""One collection's index in memory: a base that was built, and a flat tail of the log's newer rows.

A faiss index is a cache of the log. FAISS ids are the log's ``seq``, so an upsert is "add the new row, forget the one
that it replaces", and no map of ids is needed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from revln.index.flat import FlatRows
from revln.locks import SharedLock

__all__ = ["CollectionIndex", "Hit"]

Hit = tuple[int, float]  # (seq, cosine)


class CollectionIndex:
    """Nearest rows of one collection. Searches run beside each other; replaying the log and they take turns.

    Attributes:
        seq: the last row of the log that is in here.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.seq = 0
        self._tail = FlatRows(dim)
        self._lock = SharedLock()

    def __len__(self) -> int:
        """Live rows."""
        return len(self._tail)

    def apply(self, seqs: NDArray[np.int64], vectors: NDArray[np.float32], void: NDArray[np.int64], head: int) -> None:
        """Replay a stretch of the log: add (N, D) vectors under (N,) ascending seqs, drop the rows that it voids."""
        with self._lock.alone():
            self._tail.append(seqs, vectors)
            self._tail.kill(void)
            self.seq = head

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        allowed: NDArray[np.int64] | None = None,
        exact: bool = False,  # noqa: ARG002 - of use once there is a base
    ) -> list[list[Hit]]:
        """The k nearest live rows for each of (N, D) unit-norm queries, best first, ties by the older row.

        ``allowed``: ascending seqs; no other row is found (None: all are). ``exact``: look at every row.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        with self._lock.shared():
            scores, seqs = self._tail.search(queries, k, allowed)
        scores = np.clip(scores, -1.0, 1.0)
        return [
            [(seq, score) for seq, score in zip(row_seqs, row_scores, strict=True) if seq >= 0]
            for row_seqs, row_scores in zip(seqs.tolist(), scores.tolist(), strict=True)
        ]

    def live_seqs(self) -> NDArray[np.int64]:
        """Every live row, ascending."""
        with self._lock.shared():
            return self._tail.live_seqs()

    def vectors_of(self, seqs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Those of the ascending seqs that are live, (M,), and their vectors, (M, D)."""
        with self._lock.shared():
            return self._tail.get(seqs)
