"""The chunks of a job as they are read: how often each was tried, what went wrong, when it is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from revln.db import tables
from revln.db.rows import columns_of, row_to

__all__ = ["ChunkInfo", "list_chunks"]


@dataclass(frozen=True, slots=True)
class ChunkInfo:
    """One row of ``chunks`` without what it is to do."""

    number: int
    state: str
    attempt: int
    max_attempts: int
    crash_count: int
    first_index: int
    n_items: int
    succeeded: int
    failed: int
    worker: str | None
    run_at: float
    lease_until: float | None
    started_at: float | None
    finished_at: float | None
    error: dict[str, Any] | None


def list_chunks(
    connection: Connection, job_id: str, limit: int, after: int = -1, state: str | None = None
) -> list[ChunkInfo]:
    """By number, from the one behind ``after`` on."""
    columns = tables.chunks.c
    query = select(*columns_of(tables.chunks, ChunkInfo)).where(columns.job_id == job_id, columns.number > after)
    if state is not None:
        query = query.where(columns.state == state)
    return [row_to(ChunkInfo, row) for row in connection.execute(query.order_by(columns.number).limit(limit))]
