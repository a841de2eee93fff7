"""Results, read a page at a time, also while the job runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from revln.db import tables

__all__ = ["result_items", "vectors_from_bytes", "vectors_to_bytes"]


def result_items(connection: Connection, job_id: str, offset: int, limit: int) -> list[tuple[dict[str, Any], Any]]:
    """The finished items with ``offset ≤ index < offset + limit``, in order, each with its (D,) vector or None."""
    columns = tables.results.c
    rows = connection.execute(
        select(columns["items"], columns.vectors)
        .where(
            columns.job_id == job_id,
            columns.first_index < offset + limit,
            columns.first_index + columns.n_items > offset,
        )
        .order_by(columns.first_index)
    )
    page: list[tuple[dict[str, Any], Any]] = []
    for items, raw in rows:
        with_vector = [item for item in items if item.get("error") is None]
        vectors = iter(vectors_from_bytes(raw, len(with_vector)) if raw is not None else ())
        for item in items:
            vector = next(vectors, None) if item.get("error") is None else None
            if offset <= item["index"] < offset + limit:
                page.append((item, vector))
    return page


def vectors_to_bytes(vectors: NDArray[np.float32]) -> bytes:
    """(N, D) or (D,) → little-endian float32 bytes."""
    return np.ascontiguousarray(vectors, dtype="<f4").tobytes()


def vectors_from_bytes(raw: bytes, count: int) -> NDArray[np.float32]:
    """The inverse: (count, D) float32, read-only."""
    return np.frombuffer(raw, dtype="<f4").reshape(count, -1)
