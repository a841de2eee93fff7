"""Vectors that come with an item instead of being computed."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from revln.db.collections.collections import Collection
from revln.encoded import from_base64
from revln.errors import ItemInvalid
from revln.jobs.index_schemas import IndexItem

__all__ = ["own_vector", "own_vector_key"]

# Nearer to 1 than this a vector is of unit length already and is kept bit for bit: an export comes back as it was.
_UNIT = 1e-6


def own_vector(item: IndexItem, collection: Collection, vectors_of: str | None) -> NDArray[np.float32]:
    """The item's vector, (D,) of unit length. Raises ItemInvalid, saying why it cannot be in this collection."""
    if collection.has_model and vectors_of != collection.model_fingerprint:
        raise ItemInvalid(
            f"Collection {collection.name!r} holds {collection.holds}. Give the item's image or text; or, if its "
            f'vector was made by that model, say so with "vectors_of": "{collection.model_fingerprint}".'
        )
    values = _values(item)
    if len(values) != collection.dim:
        raise ItemInvalid(
            f"The vector has {len(values)} dimensions, collection {collection.name!r} has {collection.dim}."
        )
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ItemInvalid(f"Number {place} of the vector is {values[place]}; every number must be finite.")
    largest = float(np.abs(values).max())
    if not 1e-30 <= largest <= 1e100:
        raise ItemInvalid(f"The vector's largest number is {largest:g}: it has no direction. Scale it.")
    # By the largest first: the square of a large number may be more than a float holds.
    norm = float(np.linalg.norm(values / largest)) * largest
    return np.asarray(values if abs(norm - 1) <= _UNIT else values / norm, dtype=np.float32)


def own_vector_key(vector: NDArray[np.float32]) -> str:
    return "vector:" + hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()


def _values(item: IndexItem) -> NDArray[np.float64]:
    if item.vector is not None:
        return np.asarray(item.vector, dtype=np.float64)
    try:
        raw = from_base64(item.vector_b64 or "")
    except ValueError as err:
        raise ItemInvalid(f"vector_b64 is not base64: {err}.") from err
    if len(raw) % 4:
        raise ItemInvalid(f"vector_b64 holds {len(raw)} bytes, which are no float32 numbers of 4 bytes each.")
    return np.frombuffer(raw, dtype="<f4").astype(np.float64)
