"""What the sweeper does to the database. Every step is safe to run in any number of processes at once."""

from __future__ import annotations

from sqlalchemy import delete, select

from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.jobs.changes import end_queued_chunks
from revln.db.jobs.crashes import charge_locked
from revln.db.jobs.read import OPEN, lock_job
from revln.db.jobs.settle import settle_job
from revln.errors import DeadlineExceeded, NotFound, WorkerLost
from revln.jobs.state import ChunkState

__all__ = [
    "delete_lost_workers",
    "expire_deadlines",
    "recover_lost_chunks",
]

_STEP = 100  # rows a step; small transactions leave room for the others
_LOST_WORKER_S = 600.0


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
        OPEN,
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
            error = DeadlineExceeded(None if job.started_at else "Its deadline passed before any of it was started.")
            ended = end_queued_chunks(connection, job, ChunkState.EXPIRED)
            settle_job(connection, job, ended, error=error.as_dict())
            changed.append(job_id)
    return changed


def delete_lost_workers(db: Database) -> None:
    """Forget the workers that have not been heard of for ten minutes."""
    with db.write() as connection:
        connection.execute(delete(tables.workers).where(tables.workers.c.heartbeat_at < db_now() - _LOST_WORKER_S))
