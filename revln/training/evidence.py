"""What is retrieved for a picture in training: the nearest captions of others, and how many of them are honest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from revln.training.metrics import tokenize

__all__ = ["fit", "honest_pool", "nearest_captions"]

_POOLS = (4, 6, 8, 12, 16, 24, 32)


def nearest_captions(
    images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32], owner: Sequence[int] | None, k: int
) -> list[npt.NDArray[np.int64]]:
    """(N, D) pictures, (M, D) captions → k caption numbers for each, best first.

    With ``owner`` caption m belongs to picture owner[m] and is kept from it; −1 is a picture that is not here. Where
    others have fewer than k captions there are only so many.
    """
    out: list[npt.NDArray[np.int64]] = []
    of = None if owner is None else np.asarray(owner)
    for start in range(0, len(images), 512):
        scores = images[start : start + 512] @ texts.T
        if of is not None:
            rows = np.flatnonzero((of >= start) & (of < start + len(scores)))
            scores[of[rows] - start, rows] = -np.inf
        k = min(k, scores.shape[1])
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(scores, top, axis=1)
        order = best.argsort(axis=1, kind="stable")[:, ::-1]
        others = np.isfinite(best).sum(axis=1)  # a picture's own captions come last
        out += [row[:n] for row, n in zip(np.take_along_axis(top, order, axis=1), others, strict=True)]
    return out


def fit(captions: Sequence[Sequence[str]], evidence: Sequence[Sequence[str]]) -> float:
    """How well evidence tells what its picture shows: mean share of its words that a caption of the picture has too."""
    shares = []
    for told, shown in zip(captions, evidence, strict=True):
        words = {word for text in told for word in tokenize(text)}
        for mine in filter(None, (set(tokenize(text)) for text in shown)):
            shares.append(len(words & mine) / len(mine))
    return float(np.mean(shares)) if shares else 0.0


def honest_pool(captions: Sequence[Sequence[str]], evidence: Sequence[Sequence[str]], wanted: float, least: int) -> int:
    """From how many of the nearest to draw, so that training's evidence fits no better than an unseen picture's.

    A model retrieves better for the pictures that it was trained on; a decoder that saw only such evidence would trust
    it too much. ``wanted`` is the `fit` of dev's nearest ``least`` captions.
    """
    for pool in _POOLS:
        if pool >= least and fit(captions, [shown[:pool] for shown in evidence]) <= wanted:
            return pool
    return max(least, _POOLS[-1])
