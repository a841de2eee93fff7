"""Jobs: submit, read, list, cancel, retry, delete.

Lock order, everywhere: the job's row, then its chunks, then a collection's row. Two transactions that took them in
different orders would wait for each other for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, insert, literal, or_, select, update
from sqlalchemy.exc import IntegrityError

from revln.db import tables
from revln.db.engine import Database, db_now
from revln.errors import Conflict, IdempotencyMismatch, NotFound
from revln.jobs.state import ChunkState, JobStatus, Tally, derive_status

__all__ = [
    "Job",
    "JobFilter",
    "NewChunk",
    "NewJob",
    "add_event",
    "cancel_job",
    "cancel_requested",
    "count_by_status",
    "count_open_items",
    "delete_job",
    "drain_rate",
    "end_queued_chunks",
    "events_after",
    "get_job",
    "list_jobs",
    "lock_job",
    "queue_position",
    "retry_job",
    "settle_job",
    "submit_job",
]

_INSERT_BATCH = 1_000
_DRAIN_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """One row of ``jobs``."""

    id: str
    kind: str
    status: JobStatus
    priority: str
    model: str | None
    model_fingerprint: str | None
    collection: str | None
    input: dict[str, Any]
    metadata: dict[str, Any]
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
    deadline_at: float | None
    retention_s: float
    expires_at: float | None

    @property
    def tally(self) -> Tally:
        return Tally(
            queued=self.chunks_queued,
            running=self.chunks_running,
            succeeded=self.chunks_succeeded,
            dead=self.chunks_dead,
            canceled=self.chunks_canceled,
            expired=self.chunks_expired,
            items_succeeded=self.succeeded,
        )


_JOB_COLUMNS = [tables.jobs.c[field.name] for field in fields(Job)]


def _job(row: Any) -> Job:
    values = dict(row._mapping)
    return Job(**{**values, "status": JobStatus(values["status"])})


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A slice of a job's items: inline, or a byte range of its manifest."""

    first_index: int
    n_items: int
    items: list[Any] | None = None
    source_offset: int | None = None
    source_length: int | None = None


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a submission has been validated into."""

    id: str
    kind: str
    priority: str
    queue: str
    max_attempts: int
    input: dict[str, Any]
    total: int
    chunks: Iterable[NewChunk]
    metadata: dict[str, Any]
    retention_s: float
    model: str | None = None
    model_fingerprint: str | None = None
    collection: str | None = None
    tag: str | None = None
    deadline_s: float | None = None
    idempotency_key: str | None = None
    request_sha256: str | None = None


def submit_job(db: Database, new: NewJob) -> tuple[Job, bool]:
    """Write a job and its chunks in one transaction; the job, and whether it is new.

    Raises:
        IdempotencyMismatch: the key was used with another body.
    """
    try:
        with db.write() as connection:
            known = _by_key(connection, new)
            return (known, False) if known else (_insert(connection, new), True)
    except IntegrityError:
        # Two submissions with one key at once: the other won between our look and our insert.
        with db.read() as connection:
            known = _by_key(connection, new)
        if known is None:
            raise
        return known, False


def _by_key(connection: Connection, new: NewJob) -> Job | None:
    if new.idempotency_key is None:
        return None
    row = connection.execute(
        select(*_JOB_COLUMNS).where(tables.jobs.c.idempotency_key == new.idempotency_key)
    ).one_or_none()
    if row is None:
        return None
    job = _job(row)
    if job.request_sha256 != new.request_sha256:
        raise IdempotencyMismatch(
            f"Idempotency-Key {new.idempotency_key!r} already made job {job.id} from another body. "
            "Use a new key for a new job."
        )
    return job


def _insert(connection: Connection, new: NewJob) -> Job:
    now = connection.scalar(select(db_now()))
    assert now is not None
    connection.execute(
        insert(tables.jobs).values(
            id=new.id,
            kind=new.kind,
            status=JobStatus.QUEUED,
            priority=new.priority,
            model=new.model,
            model_fingerprint=new.model_fingerprint,
            collection=new.collection,
            tag=new.tag,
            input=new.input,
            metadata=new.metadata,
            total=new.total,
            idempotency_key=new.idempotency_key,
            request_sha256=new.request_sha256,
            created_at=now,
            deadline_at=now + new.deadline_s if new.deadline_s is not None else None,
            retention_s=new.retention_s,
        )
    )
    count = 0
    for batch in _batches(enumerate(new.chunks), _INSERT_BATCH):
        connection.execute(
            insert(tables.chunks),
            [
                {
                    "job_id": new.id,
                    "number": number,
                    "state": ChunkState.QUEUED,
                    "queue": new.queue,
                    "max_attempts": new.max_attempts,
                    "run_at": now,
                    "first_index": chunk.first_index,
                    "n_items": chunk.n_items,
                    "items": chunk.items,
                    "source_offset": chunk.source_offset,
                    "source_length": chunk.source_length,
                }
                for number, chunk in batch
            ],
        )
        count += len(batch)
    connection.execute(update(tables.jobs).where(tables.jobs.c.id == new.id).values(chunks_queued=count))
    add_event(connection, new.id, "job.queued", {"total": new.total})
    return get_job(connection, new.id)


def _batches(source: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(source)
    while batch := list(islice(iterator, size)):
        yield batch


def get_job(connection: Connection, job_id: str) -> Job:
    """Raises NotFound."""
    row = connection.execute(select(*_JOB_COLUMNS).where(tables.jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id!r}.")
    return _job(row)


def lock_job(connection: Connection, job_id: str) -> Job:
    """The job, its row locked until the transaction ends (SQLite: the write transaction is the lock)."""
    row = connection.execute(select(*_JOB_COLUMNS).where(tables.jobs.c.id == job_id).with_for_update()).one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id!r}.")
    return _job(row)


@dataclass(frozen=True, slots=True)
class JobFilter:
    status: str | None = None
    kind: str | None = None
    collection: str | None = None
    tag: str | None = None
    created_after: float | None = None


def list_jobs(
    connection: Connection, wanted: JobFilter, limit: int, before: tuple[float, str] | None = None
) -> list[Job]:
    """Newest first; ``before`` is the (created_at, id) of the last job of the page before."""
    columns = tables.jobs.c
    conditions: list[ColumnElement[bool]] = [
        columns[name] == value
        for name in ("status", "kind", "collection", "tag")
        if (value := getattr(wanted, name)) is not None
    ]
    if wanted.created_after is not None:
        conditions.append(columns.created_at > wanted.created_after)
    if before is not None:
        created_at, job_id = before
        conditions.append(
            or_(columns.created_at < created_at, and_(columns.created_at == created_at, columns.id < job_id))
        )
    query = select(*_JOB_COLUMNS).where(*conditions).order_by(columns.created_at.desc(), columns.id.desc()).limit(limit)
    return [_job(row) for row in connection.execute(query)]


def queue_position(connection: Connection, job: Job) -> int | None:
    """How many jobs of the same queue are ahead, or None once it has started."""
    if job.status is not JobStatus.QUEUED:
        return None
    columns = tables.jobs.c
    ahead = select(func.count()).where(
        columns.status.in_([JobStatus.QUEUED, JobStatus.RUNNING]),
        columns.kind == job.kind,
        columns.priority == job.priority,
        columns.created_at < job.created_at,
    )
    return connection.scalar(ahead)


def count_open_items(connection: Connection) -> int:
    """Items accepted and not yet done, over all jobs."""
    columns = tables.jobs.c
    query = select(func.coalesce(func.sum(columns.total - columns.succeeded - columns.failed), 0)).where(
        columns.status.in_([JobStatus.QUEUED, JobStatus.RUNNING])
    )
    return int(connection.scalar(query) or 0)


def count_by_status(connection: Connection) -> list[tuple[str, str, int, int]]:
    """(kind, status, jobs, items not yet done) for each kind and status there is."""
    columns = tables.jobs.c
    open_items = case(
        (columns.status.in_([JobStatus.QUEUED, JobStatus.RUNNING]), columns.total - columns.succeeded - columns.failed),
        else_=0,
    )
    query = select(columns.kind, columns.status, func.count(), func.sum(open_items)).group_by(
        columns.kind, columns.status
    )
    return [(kind, status, int(count), int(waiting)) for kind, status, count, waiting in connection.execute(query)]


def cancel_requested(connection: Connection, job_ids: Collection[str]) -> set[str]:
    """Those of the jobs that somebody wants canceled, or that are gone."""
    columns = tables.jobs.c
    rows = connection.execute(
        select(columns.id, columns.cancel_requested_at).where(columns.id.in_(list(job_ids)))
    ).all()
    return set(job_ids) - {row.id for row in rows if row.cancel_requested_at is None}


def drain_rate(connection: Connection) -> float:
    """Items finished per second over the last minute."""
    columns = tables.chunks.c
    done = connection.scalar(
        select(func.coalesce(func.sum(columns.n_items), 0)).where(columns.finished_at > db_now() - _DRAIN_WINDOW_S)
    )
    return float(done or 0) / _DRAIN_WINDOW_S


def add_event(connection: Connection, job_id: str, kind: str, data: dict[str, Any]) -> None:
    """Append to a job's event log. The caller holds the job's row, so ids grow in the order of commits."""
    connection.execute(
        insert(tables.events).from_select(
            ["job_id", "type", "data", "created_at"],
            select(literal(job_id), literal(kind), literal(data, tables.events.c.data.type), db_now()),
        )
    )


def events_after(connection: Connection, job_id: str, after: int, limit: int = 500) -> list[dict[str, Any]]:
    columns = tables.events.c
    query = select(tables.events).where(columns.job_id == job_id, columns.id > after).order_by(columns.id).limit(limit)
    return [dict(row._mapping) for row in connection.execute(query)]


# --- changes -----------------------------------------------------------------------------------------------------


def settle_job(connection: Connection, job: Job, changes: dict[str, Any]) -> Job:
    """Apply changes to a locked job, derive its status from its chunks, and log what a client would want to hear.

    ``changes`` holds new values of columns, counters included (the row is locked, so they cannot move under us).
    """
    values = {**changes, "version": job.version + 1}
    counted = Job(**{**{f.name: getattr(job, f.name) for f in fields(Job)}, **values})
    status = derive_status(counted.tally)
    values["status"] = status
    if status is JobStatus.RUNNING and job.started_at is None:
        values["started_at"] = db_now()
    if status.done:
        values["finished_at"] = db_now()
        values["expires_at"] = db_now() + job.retention_s
        if status is JobStatus.FAILED and values.get("error") is None:
            values["error"] = job.error or {
                "code": "all_items_failed",
                "detail": f"None of the {job.total} items could be done; each carries its own error in the result.",
                "retryable": False,
            }
    connection.execute(update(tables.jobs).where(tables.jobs.c.id == job.id).values(**values))
    if status is not job.status:
        event = "started" if status is JobStatus.RUNNING else status
        add_event(connection, job.id, f"job.{event}", _counts(counted))
    elif (counted.succeeded, counted.failed) != (job.succeeded, job.failed):
        add_event(connection, job.id, "job.progress", _counts(counted))
    return get_job(connection, job.id)


def _counts(job: Job) -> dict[str, int]:
    return {"total": job.total, "succeeded": job.succeeded, "failed": job.failed}


def end_queued_chunks(connection: Connection, job: Job, end: ChunkState) -> dict[str, int]:
    """Cancel or expire every chunk of a locked job that nobody runs; the changed counters."""
    columns = tables.chunks.c
    ended = connection.execute(
        update(tables.chunks)
        .where(columns.job_id == job.id, columns.state == ChunkState.QUEUED)
        .values(state=end, finished_at=db_now())
    ).rowcount
    name = f"chunks_{end}"
    return {"chunks_queued": job.chunks_queued - ended, name: getattr(job, name) + ended}


def cancel_job(db: Database, job_id: str) -> Job:
    """Stop queued chunks now and ask running ones to stop at their next batch boundary.

    Asking twice is fine. Raises Conflict for a job that has ended in another way.
    """
    with db.write() as connection:
        job = lock_job(connection, job_id)
        if job.status is JobStatus.CANCELED or (not job.status.done and job.cancel_requested_at is not None):
            return job
        if job.status.done:
            raise Conflict(f"Job {job_id} has already {job.status}; only an open job can be canceled.")
        changes: dict[str, Any] = dict(end_queued_chunks(connection, job, ChunkState.CANCELED))
        changes["cancel_requested_at"] = db_now()
        return settle_job(connection, job, changes)


def retry_job(db: Database, job_id: str, attempts: int) -> Job:
    """Queue again what failed, was canceled or expired; items that were done stay done.

    Raises Conflict if the job is still open or nothing of it failed.
    """
    with db.write() as connection:
        job = lock_job(connection, job_id)
        if not job.status.done:
            raise Conflict(f"Job {job_id} is {job.status}; only a job that has ended can be retried.")
        columns = tables.chunks.c
        again = and_(
            columns.job_id == job_id,
            or_(columns.state != ChunkState.SUCCEEDED, columns.failed > 0),
        )
        rows = connection.execute(
            select(columns.state, func.count(), func.sum(columns.failed)).where(again).group_by(columns.state)
        ).all()
        if not rows:
            raise Conflict(f"Nothing of job {job_id} failed; there is nothing to retry.")
        connection.execute(
            update(tables.chunks)
            .where(again)
            .values(
                state=ChunkState.QUEUED,
                max_attempts=columns.attempt + attempts,
                crash_count=0,
                lease_until=None,
                worker=None,
                published_at=None,
                run_at=db_now(),
                failed=0,
                error=None,
                finished_at=None,
            )
        )
        changes: dict[str, Any] = {
            f"chunks_{state}": getattr(job, f"chunks_{state}") - count for state, count, _ in rows
        }
        changes["chunks_queued"] = job.chunks_queued + sum(count for _, count, _ in rows)
        changes["failed"] = job.failed - sum(int(failed or 0) for _, _, failed in rows)
        changes.update(error=None, finished_at=None, expires_at=None, cancel_requested_at=None, deadline_at=None)
        return settle_job(connection, job, changes)


def delete_job(db: Database, job_id: str) -> None:
    """Remove a job, its chunks, results and events. Raises Conflict while it is open."""
    with db.write() as connection:
        job = lock_job(connection, job_id)
        if not job.status.done:
            raise Conflict(f"Job {job_id} is {job.status}; cancel it before you delete it.")
        connection.execute(delete(tables.jobs).where(tables.jobs.c.id == job_id))
