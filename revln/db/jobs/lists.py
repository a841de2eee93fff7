"""Many jobs at once, and the chunks of one: listed, counted, and how fast they are done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, func, or_, select

from revln.db import tables
from revln.db.engine import db_now
from revln.db.jobs.read import JOB_COLUMNS, OPEN, Job
from revln.db.rows import columns_of, row_to
from revln.jobs.state import ChunkState, JobStatus

__all__ = ["ChunkInfo", "JobFilter", "count_by_status", "drain_rate", "list_chunks", "list_jobs", "queue_position"]

_DRAIN_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class JobFilter:
    status: str | None = None
    kind: str | None = None
    collection: str | None = None
    tag: str | None = None
    dead: bool = False
    created_after: float | None = None


def list_jobs(
    connection: Connection, tenant: str, wanted: JobFilter, limit: int, before: tuple[float, str] | None = None
) -> list[Job]:
    """A tenant's, newest first; ``before`` is the (created_at, id) of the last job of the page before."""
    columns = tables.jobs.c
    conditions: list[ColumnElement[bool]] = [columns.tenant == tenant]
    conditions += [
        columns[name] == value
        for name in ("status", "kind", "collection", "tag")
        if (value := getattr(wanted, name)) is not None
    ]
    conditions.append(columns.deleted_at.is_(None))
    if wanted.dead:
        conditions.append(columns.chunks_dead > 0)
    if wanted.created_after is not None:
        conditions.append(columns.created_at > wanted.created_after)
    if before is not None:
        created_at, job_id = before
        conditions.append(
            or_(columns.created_at < created_at, and_(columns.created_at == created_at, columns.id < job_id))
        )
    query = select(*JOB_COLUMNS).where(*conditions).order_by(columns.created_at.desc(), columns.id.desc()).limit(limit)
    return [row_to(Job, row) for row in connection.execute(query)]


def queue_position(connection: Connection, job: Job) -> int | None:
    """How many jobs of the same queue are ahead, or None once it has started."""
    if job.status is not JobStatus.QUEUED:
        return None
    columns = tables.jobs.c
    ahead = select(func.count()).where(
        OPEN,
        columns.kind == job.kind,
        columns.priority == job.priority,
        columns.created_at < job.created_at,
    )
    return connection.scalar(ahead)


def count_by_status(connection: Connection) -> list[tuple[str, str, int, int]]:
    """(kind, status, jobs, items not yet done) for each kind and status there is."""
    columns = tables.jobs.c
    open_items = case(
        (OPEN, columns.total - columns.succeeded - columns.failed),
        else_=0,
    )
    query = (
        select(columns.kind, columns.status, func.count(), func.sum(open_items))
        .where(columns.deleted_at.is_(None))
        .group_by(columns.kind, columns.status)
    )
    return [(kind, status, int(count), int(waiting)) for kind, status, count, waiting in connection.execute(query)]


def drain_rate(connection: Connection, tenant: str | None = None) -> float:
    """Items finished per second over the last minute, a tenant's or all."""
    columns = tables.chunks.c
    query = select(func.coalesce(func.sum(columns.n_items), 0)).where(
        columns.finished_at > db_now() - _DRAIN_WINDOW_S, columns.state.in_([ChunkState.SUCCEEDED, ChunkState.DEAD])
    )
    if tenant is not None:
        query = query.where(columns.tenant == tenant)
    return float(connection.scalar(query) or 0) / _DRAIN_WINDOW_S


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
