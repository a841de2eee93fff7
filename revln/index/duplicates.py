"""Groups of rows that are nearly the same: pairs above a cosine, joined into connected components.

Pairs come in batches of bounded size, each of which is folded into the groups at once, so neither all pairs nor all
cosines are ever in memory. Rows are known by their ascending seqs, as everywhere in an index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from revln.index.collection import CollectionIndex

__all__ = ["Group", "Groups", "approximate_pairs", "describe", "exact_pairs"]

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]  # the seqs of one side and of the other
Step = Callable[[], None]  # called before each piece of work; what it raises ends it

_SIDE = 4_096  # rows of a block of cosines: 64 MB of float32
_BAND = 512  # rows of a block whose pairs are listed at once: 32 MB, even if all of them are the same
_QUERIES = 256
_FIRST_K, _MOST_K = 16, 1_024  # neighbours asked of an approximate index, and where it is enough
_ROUNDING = 5e-7  # scores are shown with six decimals; what is shown as the limit has reached it
_SAMPLE = 65_536  # members of a group that decide which of them stands for it: 64 MB of 256 dimensions


class Groups:
    """Connected components of (N,) seqs, to which edges are added batch by batch."""

    def __init__(self, seqs: NDArray[np.int64]) -> None:
        self._seqs = seqs
        self._labels = np.arange(len(seqs))

    def join(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        """Put the components of each pair together. Every seq must be one of ours."""
        if not len(left):
            return
        a = self._labels[np.searchsorted(self._seqs, left)]
        b = self._labels[np.searchsorted(self._seqs, right)]
        edges = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(len(self._seqs),) * 2)
        _, merged = connected_components(edges, directed=False)
        self._labels = merged[self._labels]

    def found(self) -> list[NDArray[np.int64]]:
        """The components of two rows and more, largest first, then by their oldest row; each ascending."""
        order = np.argsort(self._labels, kind="stable")
        _, starts, counts = np.unique(self._labels[order], return_index=True, return_counts=True)
        groups = [
            self._seqs[order[start : start + count]] for start, count in zip(starts, counts, strict=True) if count > 1
        ]
        return sorted(groups, key=lambda group: (-len(group), group[0]))


def exact_pairs(index: CollectionIndex, seqs: NDArray[np.int64], least: float, step: Step) -> Iterator[Pairs]:
    """Every pair of the ascending seqs with a cosine of ``least`` and more, from N²/2 cosines, a block at a time."""
    for at in range(0, len(seqs), _SIDE):
        left_seqs, left = index.vectors_of(seqs[at : at + _SIDE])
        for to in range(at, len(seqs), _SIDE):
            step()
            right_seqs, right = (left_seqs, left) if to == at else index.vectors_of(seqs[to : to + _SIDE])
            near = left @ right.T >= least - _ROUNDING  # (≤ _SIDE, ≤ _SIDE)
            for band in range(0, len(near), _BAND):
                rows, columns = np.nonzero(near[band : band + _BAND])
                pairs = left_seqs[band + rows], right_seqs[columns]
                once = pairs[0] < pairs[1]
                yield pairs[0][once], pairs[1][once]


def approximate_pairs(index: CollectionIndex, seqs: NDArray[np.int64], least: float, step: Step) -> Iterator[Pairs]:
    """The pairs that the index finds among each row's neighbours; rows that are not in ``seqs`` make none.

    A row whose neighbours are all that near is asked for more of them, up to 1,024: in a group that is larger, every
    row still hangs on its nearest.
    """
    for at in range(0, len(seqs), _QUERIES):
        own, vectors = index.vectors_of(seqs[at : at + _QUERIES])
        k = _FIRST_K
        while len(own):
            step()
            found = index.search(vectors, k)
            near = [[seq for seq, score in hits if score >= least - _ROUNDING] for hits in found]
            left = np.repeat(own, [len(one) for one in near])
            right = np.array([seq for one in near for seq in one], dtype=np.int64)
            known = np.isin(right, seqs, assume_unique=False) & (left != right)
            yield left[known], right[known]
            more = np.array([len(one) == k for one in near]) if k < _MOST_K else np.zeros(len(own), dtype=np.bool_)
            own, vectors, k = own[more], vectors[more], min(4 * k, _MOST_K)


@dataclass(frozen=True, slots=True)
class Group:
    """``scores`` are the members' cosines with the representative, in the order of ``members``, which is not in it."""

    representative: int
    members: NDArray[np.int64]
    scores: NDArray[np.float32]


def describe(index: CollectionIndex, seqs: NDArray[np.int64]) -> Group | None:
    """The row nearest to the group's mean (of equals the oldest), and how near the others are to it, best first.

    None: of the ascending seqs fewer than two are left.
    """
    there, sample = index.vectors_of(seqs[:_SAMPLE])
    if not len(there):
        return None
    nearness = np.round(sample @ sample.mean(axis=0), 6)
    representative, direction = int(there[nearness.argmax()]), sample[nearness.argmax()]
    parts = [index.vectors_of(seqs[at : at + _SAMPLE]) for at in range(0, len(seqs), _SAMPLE)]
    members = np.concatenate([part for part, _ in parts])
    scores = np.clip(np.round(np.concatenate([rows @ direction for _, rows in parts]), 6), -1, 1)
    others = members != representative
    members, scores = members[others], scores[others]
    order = np.lexsort((members, -scores))
    return Group(representative, members[order], scores[order]) if len(members) else None
