"""A built index: the part of a collection that a snapshot holds. Its structure never changes; rows can only die.

Inside, a row is known by its place, 0 … N-1 in the order of the log; ``ids`` gives the ``seq`` of each place. Search
parameters go with each call, so that searches beside each other cannot disturb one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from revln.index.flat import Found, best, cosines

__all__ = ["Base", "Breadth", "Fetch", "IndexType"]

# Live rows of the ascending seqs that it is given, (M,), and their (M, D) vectors: from the log.
Fetch = Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.float32]]]

_GATHER_ROWS = 4_096  # so few rows are read and compared one by one, whatever the type
_WIDEST = 4_096  # above so many results asked for, looking at every allowed row is cheaper
_WIDER = 4
_SLACK = 1.5  # filtered rows are not spread evenly around a query
_MARGIN = 8  # faiss's scores differ from true ones in the last bit; ties go to the older row
_MOST_READ = 1_000  # rows beyond k that one query reads to be compared exactly
_READ_TOGETHER = 16_384  # rows of several queries in one read: 16 MB of 256 dimensions


class IndexType(StrEnum):
    FLAT = "flat"
    HNSW = "hnsw"
    IVF = "ivf"
    IVFPQ = "ivfpq"


@dataclass(frozen=True, slots=True)
class Breadth:
    """How much of an index one search looks at: links followed (HNSW) or lists probed (IVF), for 10 results.

    ``rerank``: how many times k rows are read from the log and compared exactly; 0 where the index holds them whole.
    """

    width: int
    rerank: int = 0


class Base:
    """Searches a built HNSW, IVF or IVF-PQ index, of which some rows may be dead or not allowed."""

    def __init__(self, kind: IndexType, index: Any, seq: int, breadth: Breadth, fetch: Fetch) -> None:
        assert isinstance(index, faiss.IndexIDMap)
        self.kind, self.seq, self.breadth = kind, seq, breadth
        self._outer = index  # owns what is below
        self._index: Any = faiss.downcast_index(index.index)
        self._fetch = fetch
        self.ids: NDArray[np.int64] = faiss.vector_to_array(index.id_map)
        self._place = np.full(seq + 1, -1, dtype=np.int32)
        self._place[self.ids] = np.arange(len(self.ids), dtype=np.int32)
        self._live = np.ones(len(self.ids), dtype=np.bool_)
        self._count = len(self.ids)

    def __len__(self) -> int:
        return self._count

    @property
    def dim(self) -> int:
        return int(self._index.d)

    def kill(self, seqs: NDArray[np.int64]) -> None:
        """Forget rows; those that are not here are passed over."""
        places = self._places(seqs)
        self._count -= int(self._live[places].sum())
        self._live[places] = False

    def live_seqs(self) -> NDArray[np.int64]:
        return self.ids[self._live]

    def get(self, seqs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Those of the ascending seqs that are live here, and their vectors."""
        places = self._places(seqs)
        return self._read(places[self._live[places]])

    def _places(self, seqs: NDArray[np.int64]) -> NDArray[np.int32]:
        places = self._place[seqs[(seqs > 0) & (seqs <= self.seq)]]
        return places[places >= 0]

    def _read(self, places: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if self.kind is not IndexType.HNSW:
            return self._fetch(self.ids[places])
        return self.ids[places], self._hnsw_rows()[places]

    def _hnsw_rows(self) -> NDArray[np.float32]:
        """(N, D), without a copy."""
        stored: Any = faiss.downcast_index(self._index.storage)
        view: NDArray[np.float32] = faiss.rev_swig_ptr(stored.get_xb(), stored.ntotal * stored.d)
        return view.reshape(stored.ntotal, stored.d)

    # --- searching ---------------------------------------------------------------------------------------------------

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.int64] | None = None, *, exact: bool = False
    ) -> Found:
        """The k best live rows of (N, D) queries: scores and seqs, (N, k), best first; -1 where there are fewer."""
        if allowed is None:
            members, count = self._live, self._count
        else:
            members, places = np.zeros(len(self._live), dtype=np.bool_), self._places(allowed)
            members[places] = self._live[places]
            count = int(members.sum())
        k = min(k, count)
        if not k:
            return np.empty((len(queries), 0), dtype=np.float32), np.empty((len(queries), 0), dtype=np.int64)
        if exact or count <= min(_GATHER_ROWS, len(members) // 4):
            return self._search_members(queries, k, members, count)
        return self._search_widening(queries, k, members, count)

    def _search_widening(self, queries: NDArray[np.float32], k: int, members: NDArray[np.bool_], count: int) -> Found:
        """Ask for so many results that k of them are members; where even many hold too few, look at every member.

        What a filter allows may lie anywhere, also far from the query. Asking for more, rather than passing over what
        is not allowed while searching, shows whether enough was found: then these are the nearest members.
        """
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        seqs = np.full((len(queries), k), -1, dtype=np.int64)
        left = np.arange(len(queries))
        whole = count == len(members)
        wanted = k if whole else int(k * len(members) / count * _SLACK) + 8
        while len(left) and wanted <= max(_WIDEST, k):
            part_scores, places = self._nearest(queries[left], wanted)
            good = (places >= 0) & members[places]
            part_scores[~good] = -np.inf
            enough = good.sum(axis=1) >= k
            done = left[enough]
            scores[done], seqs[done] = best(part_scores[enough], np.where(good, self.ids[places], -1)[enough], k)
            left = left[~enough]
            wanted *= _WIDER
        if len(left):
            scores[left], seqs[left] = self._search_members(queries[left], k, members, count)
        return scores, seqs

    def _search_members(self, queries: NDArray[np.float32], k: int, members: NDArray[np.bool_], count: int) -> Found:
        """Look at every member: read and compared if they are few, else by a scan of all codes."""
        if count > _GATHER_ROWS:
            scores, places = self._reranked(queries, self._scan(queries, self._to_rerank(2 * k, count), members), k)
            return _padded(scores, np.where(places >= 0, self.ids[places], -1), k)
        seqs, rows = self._read(np.flatnonzero(members).astype(np.int32))
        wanted = min(k + _MARGIN, len(seqs))
        if not wanted:  # the collection was deleted, and what would have been read with it
            return _padded(*_nothing(len(queries)), k)
        _, found = faiss.knn(queries, np.ascontiguousarray(rows), wanted, metric=faiss.METRIC_INNER_PRODUCT)
        return _padded(*best(cosines(queries, rows, found), np.where(found >= 0, seqs[found], -1), k), k)

    def _scan(self, queries: NDArray[np.float32], k: int, members: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Places of the k nearest members by the codes of every row."""
        bitmap = np.packbits(members, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(bitmap), faiss.swig_ptr(bitmap))
        if self.kind is IndexType.HNSW:
            index, parameters = self._index.storage, _parameters("", sel=selector)
        else:
            index, parameters = self._index, _parameters("IVF", sel=selector, nprobe=self._index.nlist)
        found: NDArray[np.int64] = index.search(queries, k, params=parameters)[1]
        return found

    def _nearest(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and places, (N, k), of the nearest rows, dead ones too, as far as the breadth reaches."""
        k = min(k, len(self.ids))
        to_rerank = self._to_rerank(k, len(self.ids))
        if self.kind is IndexType.HNSW:
            parameters = _parameters("HNSW", efSearch=max(self.breadth.width, 2 * k))
        else:
            lists = math.ceil(self.breadth.width * max(1.0, k / 10))
            parameters = _parameters("IVF", nprobe=min(lists, self._index.nlist))
        scores, places = self._index.search(queries, to_rerank, params=parameters)
        if not self.breadth.rerank:
            scores[places < 0] = -np.inf
            return np.round(scores, 6), places
        return self._reranked(queries, places, k)

    def _to_rerank(self, k: int, count: int) -> int:
        return min(k if not self.breadth.rerank else min(k * self.breadth.rerank, k + _MOST_READ), count)

    def _reranked(
        self, queries: NDArray[np.float32], places: NDArray[np.int64], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k best of the places found for each query by their true cosines; rows that are gone score -inf."""
        k = min(k, places.shape[1])
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        kept = np.full((len(queries), k), -1, dtype=np.int64)
        together = max(_READ_TOGETHER // max(places.shape[1], 1), 1)
        for start in range(0, len(queries), together):
            part = slice(start, start + together)
            wanted = np.unique(places[part])
            seqs, rows = self._read(wanted[wanted >= 0].astype(np.int32))
            if not len(seqs):
                continue
            at = np.searchsorted(seqs, self.ids[places[part]])
            at[at == len(seqs)] = 0
            at[(places[part] < 0) | (seqs[at] != self.ids[places[part]])] = -1
            scores[part], kept[part] = best(cosines(queries[part], rows, at), np.where(at >= 0, places[part], -1), k)
        return scores, kept


def _parameters(of: str, **values: Any) -> Any:
    """faiss's search parameters; its own annotations know less of them than it does."""
    return getattr(faiss, f"SearchParameters{of}")(**values)


def _padded(scores: NDArray[np.float32], seqs: NDArray[np.int64], k: int) -> Found:
    missing = ((0, 0), (0, max(k - scores.shape[1], 0)))
    return np.pad(scores, missing, constant_values=-np.inf), np.pad(seqs, missing, constant_values=-1)


def _nothing(queries: int) -> Found:
    return np.empty((queries, 0), dtype=np.float32), np.empty((queries, 0), dtype=np.int64)
