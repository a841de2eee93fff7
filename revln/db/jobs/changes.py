"""What somebody does to a job after it came in: cancel, retry, delete."""

from __future__ import annotations

from sqlalchemy import Connection, and_, delete, func, or_, select, update

from revln.access import Caller
from revln.db import tables
from revln.db.access.audit import record
from revln.db.engine import Database, db_now
from revln.db.jobs.read import Job, lock_job
from revln.db.jobs.reports import begin_report_again
from revln.db.jobs.settle import settle_job
from revln.db.jobs.turns import last_turn, queue_of, renumber
from revln.db.jobs.usage import NO_QUOTAS, Quotas, Usage, check_quotas, check_total, lock_tenant
from revln.db.retention import retire
from revln.db.webhooks.outbox import forget
from revln.errors import Conflict
from revln.jobs.state import ChunkState, JobStatus, Tally

__all__ = ["cancel_job", "delete_job", "end_queued_chunks", "retry_job"]

# Chunks of a job that is deleted within the request: 100 results of 64 vectors each are some 15 MB.
_AT_ONCE = 100


def end_queued_chunks(connection: Connection, job: Job, end: ChunkState) -> Tally:
    """Cancel or expire every chunk of a locked job that nobody runs. Return the job's new tally."""
    columns = tables.chunks.c
    ended = connection.execute(
        update(tables.chunks)
        .where(columns.job_id == job.id, columns.state == ChunkState.QUEUED)
        .values(state=end, finished_at=db_now())
    ).rowcount
    return job.tally.move(ChunkState.QUEUED, end, ended)


def cancel_job(db: Database, job_id: str, by: Caller) -> Job:
    """Stop queued chunks now and ask running ones to stop at their next batch boundary.

    Asking twice is fine. Raises Conflict for a job that has ended in another way.
    """
    with db.write() as connection:
        job = lock_job(connection, job_id, by.tenant)
        if job.status is JobStatus.CANCELED or (not job.status.done and job.cancel_requested_at is not None):
            return job
        if job.status.done:
            raise Conflict(f"Job {job_id} has already {job.status}; only an open job can be canceled.")
        tally = end_queued_chunks(connection, job, ChunkState.CANCELED)
        record(connection, by, "job.cancel", job_id)
        return settle_job(connection, job, tally, cancel_requested_at=db_now())


def retry_job(db: Database, job_id: str, attempts: int, by: Caller, quotas: Quotas = NO_QUOTAS) -> Job:
    """Queue again what failed, was canceled or expired; items that were done stay done.

    Raises Conflict if the job is still open or nothing of it failed, TooBusy if the quotas have no room for it.
    """
    with db.write() as connection:
        job = lock_job(connection, job_id, by.tenant)
        lock_tenant(connection, job.tenant)
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
        record(connection, by, "job.retry", job_id)
        job = begin_report_again(connection, job)
        queue = queue_of(connection, job_id, 0)
        assert queue is not None
        turn = last_turn(connection, job.tenant, queue)
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
        # New turns: with their old ones, a job of a million items would now go before everybody else's.
        renumber(connection, job_id, turn)
        tally = job.tally
        for state, count, failed in rows:
            tally = tally.move(ChunkState(state), ChunkState.QUEUED, count).count(failed=-int(failed or 0))
        more = Usage(job.total - job.succeeded - tally.items_failed, job.size_bytes)
        check_quotas(connection, job.tenant, job.key_id, more, quotas)
        check_total(connection, more, quotas)
        return settle_job(connection, job, tally, total=job.total, **dict.fromkeys(_FORGOTTEN))


# Columns of a job that say how and when it ended, or was to end: a retry begins without them.
_FORGOTTEN = (
    "error", "finished_at", "expires_at", "cancel_requested_at", "deadline_at", "deadline_s", "active_deadline_s",
)  # fmt: skip


def delete_job(db: Database, job_id: str, by: Caller) -> None:
    """Remove a job, its chunks, results, events and webhooks; of a large one the sweepers remove them, step by step.

    Raises Conflict while it is open.
    """
    with db.write() as connection:
        job = lock_job(connection, job_id, by.tenant)
        if not job.status.done:
            raise Conflict(f"Job {job_id} is {job.status}; cancel it before you delete it.")
        forget(connection, job_id)
        if job.tally.total <= _AT_ONCE:
            connection.execute(delete(tables.jobs).where(tables.jobs.c.id == job_id))
        else:
            retire(connection, tables.jobs.c.id == job_id)
        record(connection, by, "job.delete", job_id)
