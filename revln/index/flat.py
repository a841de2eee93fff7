"""One collection's vectors in memory, searched exactly, kept up to date by replaying its log.

FAISS ids are the log's ``seq``, so an upsert is "add the new row, remove the one it replaces" and no map is needed.
Adding during a search crashes FAISS (faiss#1781), so a lock keeps them apart; a search uses all cores by itself, so
searches that wait for each other lose nothing.
"""

from __future__ import annotations

from threading import Lock

import faiss
import numpy as np
from numpy.typing import NDArray

__all__ = ["FlatIndex"]

_REMOVE_TOGETHER = 1_000  # IndexFlat.remove_ids moves every vector behind the removed one: worth doing in batches


class FlatIndex:
    """Exact inner-product search over unit-norm vectors; scores are cosines.

    Attributes:
        seq: the last row of the log that is in here.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.seq = 0
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
        self._void: set[int] = set()  # rows that are still stored but no longer live
        self._lock = Lock()

    def __len__(self) -> int:
        return int(self._index.ntotal) - len(self._void)

    def apply(self, seqs: NDArray[np.int64], vectors: NDArray[np.float32], void: NDArray[np.int64], head: int) -> None:
        """Replay a stretch of the log: add (N, D) vectors under (N,) seqs, then drop the rows that it made void."""
        assert vectors.shape == (len(seqs), self.dim)
        with self._lock:
            if len(seqs):
                self._index.add_with_ids(np.ascontiguousarray(vectors, dtype=np.float32), seqs)
            self._void.update(void.tolist())
            if len(self._void) >= _REMOVE_TOGETHER:
                void_ids = np.fromiter(self._void, dtype=np.int64, count=len(self._void))
                self._index.remove_ids(faiss.IDSelectorBatch(void_ids))
                self._void.clear()
            self.seq = head

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[tuple[int, float]]]:
        """The k nearest live rows for each of (N, D) queries: (seq, cosine), best first, ties by the older row."""
        with self._lock:
            # Void rows are few (see above), so asking for that many more and dropping them is exact and needs no
            # selector, which would cost a look-up for every stored vector.
            wanted = min(k + len(self._void), int(self._index.ntotal))
            if wanted == 0:
                return [[] for _ in queries]
            scores, seqs = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), wanted)
            void = self._void.copy()
        hits = []
        for row_seqs, row_scores in zip(seqs.tolist(), np.clip(scores, -1.0, 1.0).tolist(), strict=True):
            found = zip(row_seqs, row_scores, strict=True)
            live = [(seq, score) for seq, score in found if seq >= 0 and seq not in void]
            hits.append(sorted(live, key=lambda hit: (-hit[1], hit[0]))[:k])
        return hits
