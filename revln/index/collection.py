"""One collection's index in memory: a base that was built, and a flat tail of the log's newer rows.

A faiss index is a cache of the log. A row is known by its ``seq``, so an upsert is "add the new row, forget the one
that it replaces", and no map of ids is needed.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from revln.index.base import Base
from revln.index.flat import FlatRows, best
from revln.locks import SharedLock

__all__ = ["CollectionIndex", "Hit"]

Hit = tuple[int, float]  # (seq, cosine)


class CollectionIndex:
    """Nearest rows of one collection. Searches run beside each other; replaying the log and they take turns.

    Attributes:
        seq: the last row of the log that is in here. Read it before a search to say what that search is sure to have
            seen: rows may be replayed meanwhile.
    """

    def __init__(self, dim: int, base: Base | None = None) -> None:
        self.dim = dim
        self.seq = 0 if base is None else base.seq
        self._base = base
        self._tail = FlatRows(dim)
        self._lock = SharedLock()

    @classmethod
    def of_flat(cls, index: Any, seq: int) -> CollectionIndex:
        """Around a flat index that was built up to ``seq``: its rows are taken as they lie, and searched as the tail.

        ``index``: an IndexIDMap around an IndexFlatIP; its memory is ours from now on.
        """
        stored: Any = faiss.downcast_index(index.index)
        made = cls(stored.d)
        rows: NDArray[np.float32] = faiss.rev_swig_ptr(stored.get_xb(), stored.ntotal * stored.d)
        made._tail.adopt(faiss.vector_to_array(index.id_map), rows.reshape(stored.ntotal, stored.d), index)
        made.seq = seq
        return made

    def __len__(self) -> int:
        """Live rows."""
        return len(self._tail) + (len(self._base) if self._base else 0)

    @property
    def tail_rows(self) -> int:
        """Rows outside the base."""
        return len(self._tail)

    def apply(self, seqs: NDArray[np.int64], vectors: NDArray[np.float32], void: NDArray[np.int64], head: int) -> None:
        """Replay a stretch of the log: add (N, D) vectors under (N,) ascending seqs, drop the rows that it voids."""
        with self._lock.alone():
            self._tail.append(seqs, vectors)
            self._tail.kill(void)
            if self._base is not None:
                self._base.kill(void)
            self.seq = head

    def search(
        self, queries: NDArray[np.float32], k: int, *, allowed: NDArray[np.int64] | None = None, exact: bool = False
    ) -> list[list[Hit]]:
        """The k nearest live rows for each of (N, D) unit-norm queries, best first, ties by the older row.

        ``allowed``: ascending seqs; no other row is found (None: all are). ``exact``: look at every row, as far as what
        the index holds of it goes (codes, of type ivfpq; the best of them are compared whole).
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        with self._lock.shared():
            scores, seqs = self._tail.search(queries, k, allowed)
            if self._base is not None:
                more_scores, more_seqs = self._base.search(queries, k, allowed, exact=exact)
                scores, seqs = np.concatenate([more_scores, scores], axis=1), np.concatenate([more_seqs, seqs], axis=1)
                scores, seqs = best(scores, seqs, k)
        scores = np.clip(scores, -1.0, 1.0)
        return [
            [(seq, score) for seq, score in zip(row_seqs, row_scores, strict=True) if seq >= 0]
            for row_seqs, row_scores in zip(seqs.tolist(), scores.tolist(), strict=True)
        ]

    def live_seqs(self) -> NDArray[np.int64]:
        """Every live row, ascending."""
        with self._lock.shared():
            tail = self._tail.live_seqs()
            return tail if self._base is None else np.concatenate([self._base.live_seqs(), tail])

    def vectors_of(self, seqs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Those of the ascending seqs that are live, (M,), and their vectors, (M, D)."""
        with self._lock.shared():
            found, vectors = self._tail.get(seqs)
            if self._base is None:
                return found, vectors
            older, older_vectors = self._base.get(seqs)
            return np.concatenate([older, found]), np.concatenate([older_vectors, vectors])
