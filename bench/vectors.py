"""Vectors as models make them: unit norm, in clusters of different sizes, with directions that matter less and less."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["clustered"]

_CLUSTERS, _DIRECTIONS = 1_000, 96
_DECAY = 0.7  # the spread along the n-th direction is n^-0.7


def clustered(rows: int, dim: int, seed: int) -> NDArray[np.float32]:
    """(rows, dim) float32; the same clusters whatever the seed, so queries can be drawn from them too."""
    world, random = np.random.default_rng(7), np.random.default_rng(seed + 1_000_000)
    centres = world.standard_normal((_CLUSTERS, dim), dtype=np.float32)
    spread = np.arange(1, _DIRECTIONS + 1, dtype=np.float32) ** np.float32(-_DECAY)
    spread /= np.linalg.norm(spread)
    directions = world.standard_normal((_DIRECTIONS, dim), dtype=np.float32) * spread[:, None]
    weights = np.arange(1, _CLUSTERS + 1) ** -0.5
    labels = random.choice(_CLUSTERS, rows, p=weights / weights.sum())
    vectors = centres[labels] + random.standard_normal((rows, _DIRECTIONS), dtype=np.float32) @ directions
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)
