"""Recall@K between pictures and their captions, as Hodosh et al. (JAIR 2013) and VSE++ report it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Recall", "recall_both_ways"]


@dataclass(frozen=True, slots=True)
class Recall:
    """Percent of queries whose right answer is among the first K, and the median rank (1 is best)."""

    r1: float
    r5: float
    r10: float
    median_rank: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def recall_both_ways(
    images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32], owner: Sequence[int]
) -> tuple[Recall, Recall]:
    """(N, D) pictures and (M, D) texts, text m of picture owner[m] → image→text and text→image.

    An image's rank is that of its best caption. A tie counts against the right answer, so a model that gives every
    text the same vector scores zero and not a hundred; so does a score that is no number, whichever side it is on.
    """
    of = np.asarray(owner)
    scores = texts @ images.T  # (M, N)
    own = scores[np.arange(len(of)), of]  # (M,)
    # Not `>=`, which NaN never is: a model of NaN vectors had R@1 = 100.
    t2i = (~(scores < own[:, None])).sum(axis=1)
    i2t = np.empty(len(images), dtype=np.int64)
    for i in range(len(images)):
        mine = of == i
        best = scores[mine, i].max()
        # Its other captions are right answers too, and never push the best one down.
        i2t[i] = 1 + (~(scores[~mine, i] < best)).sum()
    return _summary(i2t), _summary(t2i)


def _summary(ranks: npt.NDArray[np.int64]) -> Recall:
    r1, r5, r10 = (round(100.0 * float((ranks <= k).mean()), 2) for k in (1, 5, 10))
    return Recall(r1, r5, r10, float(np.median(ranks)))
