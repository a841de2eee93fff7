"""Chunks that are given up: dead letters. ``GET /v1/jobs?dead=true`` lists their jobs, a retry runs them again."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, select, update

from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.jobs.chunks import Claim, held_by, is_chunk, lock_for
from revln.db.jobs.read import Job
from revln.db.jobs.results import write_result
from revln.db.jobs.settle import add_event, settle_job
from revln.errors import LeaseLost
from revln.jobs.state import ChunkState

__all__ = ["bury_chunk", "bury_locked"]


def bury_chunk(db: Database, claim: Claim, error: dict[str, Any]) -> Job:
    """Give a running chunk up for good: a dead letter. Every item of it that was not done carries the error."""
    with db.write() as connection:
        job = lock_for(connection, claim)
        return bury_locked(connection, job, claim.number, claim.attempt, ChunkState.RUNNING, error)


def bury_locked(
    connection: Connection, job: Job, number: int, attempt: int, was: ChunkState, error: dict[str, Any]
) -> Job:
    """The same for whoever already holds the job's row (the sweeper); fenced by ``attempt`` and the state it was in."""
    columns = tables.chunks.c
    this = is_chunk(job.id, number)
    final = connection.scalar(select(columns.failed).where(this)) or 0
    row = connection.execute(
        update(tables.chunks)
        .where(held_by(job.id, number, attempt, was))
        .values(
            state=ChunkState.DEAD,
            lease_until=None,
            error=error,
            failed=columns.n_items - columns.succeeded,
            finished_at=db_now(),
        )
        .returning(
            columns["items"],
            columns.first_index,
            columns.n_items,
            columns.succeeded,
            columns.failed,
            columns.started_at,
        )
    ).one_or_none()
    if row is None:
        raise LeaseLost(f"Chunk {number} of job {job.id} is no longer at attempt {attempt}.")
    add_event(connection, job.id, "chunk.dead", {"chunk": number, "error": error})
    _write_errors(connection, job.id, number, attempt, row, error, final)
    tally = job.tally.move(was, ChunkState.DEAD).count(failed=row.failed - final)
    return settle_job(connection, job, tally, error=error)


def _write_errors(
    connection: Connection, job_id: str, number: int, attempt: int, row: Any, error: dict[str, Any], final: int
) -> None:
    """For every item that is not done; ``final``: how many errors of an earlier run stand."""
    where = and_(tables.results.c.job_id == job_id, tables.results.c.number == number)
    kept = connection.execute(select(tables.results.c["items"], tables.results.c.vectors).where(where)).one_or_none()
    given = row._mapping["items"] or [None] * row.n_items
    fresh = [
        {"index": row.first_index + offset, "id": item.get("id") if isinstance(item, dict) else None, "error": error}
        for offset, item in enumerate(given)
    ]
    if kept:
        stays = {old["index"]: old for old in kept[0] if old.get("error") is None or final}
        fresh = [stays.get(new["index"], new) for new in fresh]
    write_result(
        connection, (job_id, number), attempt, (row.first_index, row.n_items), fresh, kept[1] if kept else None
    )
