"""What the sweeper does to the database. Every step is safe to run in any number of processes at once."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, or_, select, update

from revln.db import tables
from revln.db.crashes import charge_locked
from revln.db.engine import Database, db_now
from revln.db.job_changes import end_queued_chunks, settle_job
from revln.db.jobs import lock_job
from revln.errors import DeadlineExceeded, NotFound, WorkerLost
from revln.jobs.state import ChunkState, JobStatus

__all__ = [
    "ChunkAddress",
    "delete_lost_workers",
    "expire_deadlines",
    "recover_lost_chunks",
    "take_unpublished",
    "waiting_queues",
]

_STEP = 100  # rows a step; small transactions leave room for the others
_LOST_WORKER_S = 600.0


@dataclass(frozen=True, slots=True)
class ChunkAddress:
    """What a message carries, and nothing else."""

    job_id: str
    number: int
    kind: str
    queue: str


def recover_lost_chunks(db: Database, max_crashes: int) -> list[str]:
    """Set back the chunks whose lease has run out; bury those that have now killed ``max_crashes`` workers.

    Returns the ids of the jobs that changed.
    """
    columns = tables.chunks.c
    with db.read() as connection:
        lost = connection.execute(
            select(columns.job_id, columns.number, columns.attempt)
            .where(columns.state == ChunkState.RUNNING, columns.lease_until < db_now())
            .limit(_STEP)
        ).all()
    return [job_id for job_id, number, attempt in lost if _recover(db, job_id, number, attempt, max_crashes)]


def _recover(db: Database, job_id: str, number: int, attempt: int, max_crashes: int) -> bool:
    columns = tables.chunks.c
    with db.write() as connection:
        try:
            job = lock_job(connection, job_id)
        except NotFound:
            return False
        # Looked at again under the lock: the lease may have been renewed, or another sweeper was here first.
        worker = connection.scalar(
            select(columns.worker).where(
                columns.job_id == job_id,
                columns.number == number,
                columns.attempt == attempt,
                columns.state == ChunkState.RUNNING,
                columns.lease_until < db_now(),
            )
        )
        if worker is None:
            return False
        why = WorkerLost(f"Worker {worker} was not heard of for longer than its lease.")
        charge_locked(connection, job, number, attempt, why, max_crashes)
        return True


def expire_deadlines(db: Database) -> list[str]:
    """End the queued chunks of jobs whose deadline has passed; running ones see it at their next batch boundary."""
    columns = tables.jobs.c
    late = (
        columns.status.in_([JobStatus.QUEUED, JobStatus.RUNNING]),
        columns.deadline_at < db_now(),
        columns.chunks_queued > 0,
    )
    with db.read() as connection:
        ids = list(connection.scalars(select(columns.id).where(*late).limit(_STEP)))
    changed = []
    for job_id in ids:
        with db.write() as connection:
            try:
                job = lock_job(connection, job_id)
            except NotFound:
                continue
            if job.status.done or not job.chunks_queued:
                continue
            settle_job(
                connection,
                job,
                {**end_queued_chunks(connection, job, ChunkState.EXPIRED), "error": DeadlineExceeded().as_dict()},
            )
            changed.append(job_id)
    return changed


def waiting_queues(db: Database) -> list[str]:
    """The queues that have chunks to run now."""
    columns = tables.chunks.c
    query = select(columns.queue).where(columns.state == ChunkState.QUEUED, columns.run_at <= db_now()).distinct()
    with db.read() as connection:
        return list(connection.scalars(query))


def take_unpublished(db: Database, queue: str, limit: int, republish_s: float, *, again: bool) -> list[ChunkAddress]:
    """Mark up to ``limit`` queued chunks as published, oldest first, and return them to be published.

    With ``again``, also those that were published over ``republish_s`` ago and that nobody claimed: only sensible while
    the queue is empty, else the message is still on its way.
    """
    columns = tables.chunks.c
    never = columns.published_at.is_(None)
    waiting = or_(never, columns.published_at < db_now() - republish_s) if again else never
    with db.write() as connection:
        chosen = (
            select(columns.job_id, columns.number, tables.jobs.c.kind)
            .join(tables.jobs, tables.jobs.c.id == columns.job_id)
            .where(columns.state == ChunkState.QUEUED, columns.queue == queue, columns.run_at <= db_now(), waiting)
            .order_by(columns.run_at, columns.job_id, columns.number)
            .limit(limit)
            .with_for_update(skip_locked=True, of=tables.chunks)
        )
        rows = connection.execute(chosen).all()
        for row in rows:
            connection.execute(
                update(tables.chunks)
                .where(columns.job_id == row.job_id, columns.number == row.number)
                .values(published_at=db_now())
            )
    return [ChunkAddress(row.job_id, row.number, row.kind, queue) for row in rows]


def delete_lost_workers(db: Database) -> None:
    """Forget the workers that have not been heard of for ten minutes."""
    with db.write() as connection:
        connection.execute(delete(tables.workers).where(tables.workers.c.heartbeat_at < db_now() - _LOST_WORKER_S))
