"""A job's status follows from its chunks: derived, written, logged and told where one of them moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, insert, literal, select, update

from revln.db import tables
from revln.db.engine import db_now
from revln.db.jobs.read import Job, counters, earliest, get_job
from revln.db.jobs.usage import move_usage, usage_of
from revln.db.webhooks.outbox import tell
from revln.jobs.state import JobStatus, Tally, can_change, derive_status

__all__ = ["add_event", "settle_job"]


def add_event(connection: Connection, job_id: str, kind: str, data: dict[str, Any]) -> None:
    """Append to a job's event log. The caller holds the job's row, so ids grow in the order of commits."""
    connection.execute(
        insert(tables.events).from_select(
            ["job_id", "type", "data", "created_at"],
            select(literal(job_id), literal(kind), literal(data, tables.events.c.data.type), db_now()),
        )
    )


def settle_job(connection: Connection, job: Job, tally: Tally, **columns: Any) -> Job:
    """Give a locked job its new tally, derive its status from that, and log what a client would want to hear.

    ``columns``: new values of other columns. The row is locked, so the counters cannot move under us.
    """
    status = derive_status(tally)
    assert can_change(job.status, status), f"job {job.id} cannot go from {job.status} to {status}"
    values = {**columns, **counters(tally), "version": job.version + 1, "status": status}
    counted = replace(job, **values)
    if status is JobStatus.RUNNING and job.started_at is None:
        now = connection.scalar(select(db_now()))
        assert now is not None
        to_end_s = None if job.deadline_s is None else job.created_at + job.deadline_s - now
        values |= {"started_at": now, "deadline_at": earliest(now, to_end_s, job.active_deadline_s)}
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
    move_usage(connection, job.tenant, job.key_id, usage_of(counted) - usage_of(job))
    settled = get_job(connection, job.id)
    event: str
    if status is not job.status:
        event = "started" if status is JobStatus.RUNNING else status
    elif (counted.succeeded, counted.failed) != (job.succeeded, job.failed):
        event = "progress"
    else:
        return settled
    add_event(connection, job.id, f"job.{event}", _counts(counted))
    tell(connection, settled, f"job.{event}")
    return settled


def _counts(job: Job) -> dict[str, int]:
    return {"total": job.total, "succeeded": job.succeeded, "failed": job.failed}
