"""A chunk that took its worker down, or hung in it: charged, set back, and in the end buried.

Crashes are counted apart from attempts: a machine that is killed again and again uses up nobody's retries, and a blob
store that is away for a minute is no step towards a dead letter.
"""

from __future__ import annotations

from sqlalchemy import Connection, update

from revln.db import tables
from revln.db.engine import Database
from revln.db.jobs.chunks import Claim, held_by, is_chunk, lock_for, set_back, way_back
from revln.db.jobs.dead_letters import bury_locked
from revln.db.jobs.read import Job
from revln.db.jobs.settle import add_event, settle_job
from revln.errors import LeaseLost, RevlnError, WorkerLost
from revln.jobs.state import ChunkState

__all__ = ["charge_crash", "charge_locked"]


def charge_crash(db: Database, claim: Claim, why: RevlnError, max_crashes: int) -> Job:
    """Of a chunk that we hold and that must not go on here. Raises LeaseLost if it is no longer ours."""
    with db.write() as connection:
        return charge_locked(connection, lock_for(connection, claim), claim.number, claim.attempt, why, max_crashes)


def charge_locked(
    connection: Connection, job: Job, number: int, attempt: int, why: RevlnError, max_crashes: int
) -> Job:
    """The same for whoever holds the job's row already; fenced by ``attempt``."""
    columns = tables.chunks.c
    state = way_back(job)
    crashes = connection.execute(
        update(tables.chunks)
        .where(held_by(job.id, number, attempt))
        .values(crash_count=columns.crash_count + 1, max_attempts=columns.max_attempts + 1)
        .returning(columns.crash_count)
    ).scalar()
    if crashes is None:
        raise LeaseLost(f"Chunk {number} of job {job.id} is no longer ours at attempt {attempt}.")
    add_event(connection, job.id, "chunk.crashed", {"chunk": number, "crashes": crashes, "error": why.as_dict()})
    if crashes >= max_crashes and state is not ChunkState.CANCELED:
        error = WorkerLost(
            f"{crashes} times a worker died or hung while it ran this chunk; it is not tried again by itself. The last "
            f"time: {why.message} POST …/retry runs it once more."
        ).as_dict()
        return bury_locked(connection, job, number, attempt, ChunkState.RUNNING, error)
    back = set_back(state, why.as_dict(), 0.0)
    connection.execute(update(tables.chunks).where(is_chunk(job.id, number)).values(**back))
    return settle_job(connection, job, job.tally.move(ChunkState.RUNNING, state))
