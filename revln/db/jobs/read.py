"""A job as it is read.

Lock order, everywhere: the job's row, then its chunks, then a collection's row. Two transactions that took them in
different orders would wait for each other for ever.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, select

from revln.db import tables
from revln.db.rows import columns_of, row_to
from revln.errors import NotFound
from revln.jobs.state import ChunkState, JobStatus, Tally

__all__ = [
    "JOB_COLUMNS",
    "OPEN",
    "Job",
    "cancel_requested",
    "counters",
    "earliest",
    "events_after",
    "get_job",
    "lock_job",
]

OPEN = tables.jobs.c.status.in_([JobStatus.QUEUED, JobStatus.RUNNING])


@dataclass(frozen=True, slots=True)
class Job:
    """One row of ``jobs``."""

    id: str
    tenant: str
    key_id: str | None
    kind: str
    status: JobStatus
    priority: str
    model: str | None
    model_fingerprint: str | None
    collection: str | None
    input: dict[str, Any]
    metadata: dict[str, Any]
    webhook: dict[str, Any] | None
    total: int
    succeeded: int
    failed: int
    chunks_queued: int
    chunks_running: int
    chunks_succeeded: int
    chunks_dead: int
    chunks_canceled: int
    chunks_expired: int
    version: int
    error: dict[str, Any] | None
    request_sha256: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    cancel_requested_at: float | None
    deadline_at: float | None  # the next one: to be started, or to end
    deadline_s: float | None  # to end, from its creation
    active_deadline_s: float | None  # to end, from its first start
    retention_s: float
    expires_at: float | None
    size_bytes: int

    @property
    def tally(self) -> Tally:
        return Tally(**{name: getattr(self, column) for column, name in _COUNTERS.items()})


_COUNTERS = {f"chunks_{state}": state.value for state in ChunkState} | {
    "succeeded": "items_succeeded", "failed": "items_failed"
}  # fmt: skip


def counters(tally: Tally) -> dict[str, int]:
    """Return the columns of a job that say what its tally does."""
    return {column: getattr(tally, name) for column, name in _COUNTERS.items()}


def earliest(start: float, *after_s: float | None) -> float | None:
    """The first of these moments after ``start``; None if none is given."""
    return min((start + one for one in after_s if one is not None), default=None)


JOB_COLUMNS = columns_of(tables.jobs, Job)


def get_job(connection: Connection, job_id: str, tenant: str | None = None) -> Job:
    """``tenant``: whose it must be; None where the id is our own (a claim's). Raises NotFound."""
    return _one(connection, select(*JOB_COLUMNS), job_id, tenant)


def lock_job(connection: Connection, job_id: str, tenant: str | None = None) -> Job:
    """The same, its row locked until the transaction ends (SQLite: the write transaction is the lock)."""
    return _one(connection, select(*JOB_COLUMNS).with_for_update(), job_id, tenant)


def _one(connection: Connection, query: Select[Any], job_id: str, tenant: str | None) -> Job:
    query = query.where(tables.jobs.c.id == job_id, tables.jobs.c.deleted_at.is_(None))
    if tenant is not None:
        query = query.where(tables.jobs.c.tenant == tenant)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id!r}.")
    return row_to(Job, row)


def cancel_requested(connection: Connection, job_ids: Collection[str]) -> set[str]:
    """Those of the jobs that somebody wants canceled, or that are gone."""
    columns = tables.jobs.c
    rows = connection.execute(
        select(columns.id, columns.cancel_requested_at).where(columns.id.in_(list(job_ids)))
    ).all()
    return set(job_ids) - {row.id for row in rows if row.cancel_requested_at is None}


def events_after(connection: Connection, job_id: str, after: int, limit: int = 500) -> list[dict[str, Any]]:
    columns = tables.events.c
    query = select(tables.events).where(columns.job_id == job_id, columns.id > after).order_by(columns.id).limit(limit)
    return [dict(row._mapping) for row in connection.execute(query)]
