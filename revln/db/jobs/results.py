"""Results: written a chunk at a time, read a page at a time, also while the job runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Text, delete, insert, select

from revln.db import tables
from revln.errors import FieldError, ValidationFailed

__all__ = ["PAGE_BYTES", "result_items", "vectors_by_index", "vectors_from_bytes", "vectors_to_bytes", "write_result"]

PAGE_BYTES = 128 * 2**20  # of a result as JSON: 10,000 items of 650 numbers, or of 13 kB of hits or evidence
_TEXT_OF_VECTOR = 5  # -0.012246512807905674 for four bytes


def write_result(
    connection: Connection,
    key: tuple[str, int],
    attempt: int,
    span: tuple[int, int],
    items: Sequence[dict[str, Any]],
    vectors: bytes | None = None,
) -> None:
    """Put a chunk's result in the place of an earlier one. ``span``: its first index, and for how many it stands."""
    job_id, number = key
    columns = tables.results.c
    connection.execute(delete(tables.results).where(columns.job_id == job_id, columns.number == number))
    connection.execute(
        insert(tables.results).values(
            job_id=job_id,
            number=number,
            attempt=attempt,
            first_index=span[0],
            n_items=span[1],  # a canceled chunk has fewer results
            items=list(items),
            vectors=vectors,
        )
    )


def result_items(
    connection: Connection, job_id: str, offset: int, limit: int, *, as_json: bool = True, cut: bool = False
) -> list[tuple[dict[str, Any], Any]]:
    """The finished items with ``offset ≤ index < offset + limit``, in order, each with its (D,) vector or None.

    ``as_json`` says that vectors will be written as numbers in text, which makes five times as much of them; ``cut``
    that a page which is too large ends early.

    Raises:
        ValidationFailed: the page is too large.
    """
    columns = tables.results.c
    query = (
        select(columns["items"].cast(Text), columns.vectors)
        .where(
            columns.job_id == job_id,
            columns.first_index < offset + limit,
            columns.first_index + columns.n_items > offset,
        )
        .order_by(columns.first_index)
    )
    page: list[tuple[dict[str, Any], Any]] = []
    size = 0
    with connection.execute(query, execution_options={"yield_per": 1}) as rows:
        for text, raw in rows:
            size += len(text) + len(raw or b"") * (_TEXT_OF_VECTOR if as_json else 1)
            if size > PAGE_BYTES and page:  # one chunk's is always given: no worker makes one that is too large
                if cut:
                    break
                raise _too_large(limit, len(page))
            items = json.loads(text, parse_constant=lambda _: None)  # NaN, as it was once stored, is no JSON
            vectors = vectors_by_index(items, raw)
            page += [(item, vectors.get(item["index"])) for item in items if offset <= item["index"] < offset + limit]
    return page


def _too_large(limit: int, fits: int) -> ValidationFailed:
    detail = (
        f"{limit:,} items of this result take more than {PAGE_BYTES:,} bytes; {fits:,} do not: ask for limit={fits}, "
        "or for vectors with Accept: application/x-npy"
    )
    return ValidationFailed(f"/limit: {detail}", (FieldError(detail, "/limit"),))


def vectors_by_index(items: Iterable[dict[str, Any]], raw: bytes | None) -> dict[int, NDArray[np.float32]]:
    """The (D,) vectors that lie beside results, one for each item without an error, by the items' index."""
    good = [item["index"] for item in items if item.get("error") is None]
    return dict(zip(good, vectors_from_bytes(raw, len(good)), strict=True)) if raw is not None and good else {}


def vectors_to_bytes(vectors: NDArray[np.float32]) -> bytes:
    """(N, D) or (D,) → little-endian float32 bytes."""
    return np.ascontiguousarray(vectors, dtype="<f4").tobytes()


def vectors_from_bytes(raw: bytes, count: int) -> NDArray[np.float32]:
    """The inverse: (count, D) float32, read-only."""
    return np.frombuffer(raw, dtype="<f4").reshape(count, -1)
