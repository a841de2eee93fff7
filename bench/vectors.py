"""Vectors as models make them: unit norm, in clusters of very different sizes, in fewer dimensions than they have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["clustered"]

_CLUSTERS, _INNER = 1_000, 48  # embeddings of pictures have an intrinsic dimension of some dozens
_SPREAD = 0.7


def clustered(rows: int, dim: int, seed: int) -> NDArray[np.float32]:
    """(rows, dim) float32; the same clusters whatever the seed, so queries can be drawn from them too."""
    world, random = np.random.default_rng(7), np.random.default_rng(seed + 1_000_000)
    inner = min(_INNER, dim)
    centres = world.standard_normal((_CLUSTERS, dim), dtype=np.float32)
    directions = world.standard_normal((inner, dim), dtype=np.float32) / np.sqrt(np.float32(inner))
    weights = 1.0 / np.arange(1, _CLUSTERS + 1)
    labels = random.choice(_CLUSTERS, rows, p=weights / weights.sum())
    noise = random.standard_normal((rows, inner), dtype=np.float32) @ directions
    vectors = centres[labels] + np.float32(_SPREAD * 2) * noise
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)
