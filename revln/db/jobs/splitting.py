"""A chunk that is cut into chunks of one item each: what kills its worker is found, and its neighbours are done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select, update

from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.jobs.chunks import Claim, held_by, is_chunk, lock_for
from revln.db.jobs.read import Job
from revln.db.jobs.results import vectors_by_index, vectors_to_bytes, write_result
from revln.db.jobs.settle import add_event, settle_job
from revln.db.jobs.submit import NewChunk, source_columns
from revln.errors import LeaseLost
from revln.jobs.state import ChunkState

__all__ = ["split_chunk"]


def split_chunk(db: Database, claim: Claim, parts: Sequence[NewChunk]) -> Job:
    """Put one chunk for each item in the place of one that we hold; what was done stays done.

    They inherit its crashes, so each runs alone. The first takes its number, the others new ones.

    Raises:
        LeaseLost: it is no longer ours.
    """
    columns = tables.chunks.c
    this = is_chunk(*claim.key)
    with db.write() as connection:
        job = lock_for(connection, claim)
        held = select(tables.chunks).where(held_by(*claim.key, claim.attempt))
        row = connection.execute(held).one_or_none()
        if row is None:
            raise LeaseLost(f"Chunk {claim.number} of job {claim.job.id} is no longer ours; it was not split.")
        last = connection.scalar(select(func.max(columns.number)).where(columns.job_id == job.id)) or 0
        connection.execute(delete(tables.results).where(*_result_of(claim)))
        done = _done(claim)
        for place, part in enumerate(parts):
            number = claim.number if place == 0 else last + place
            values = _values(dict(row._mapping), part, number, done.get(part.first_index))
            statement = update(tables.chunks).where(this) if place == 0 else insert(tables.chunks)
            connection.execute(statement.values(**values))
            if part.first_index in done:
                item, vector = done[part.first_index]
                span = part.first_index, 1
                write_result(connection, (job.id, number), claim.attempt, span, [item], vector)
        add_event(connection, job.id, "chunk.split", {"chunk": claim.number, "into": len(parts)})
        parted = job.tally.add(ChunkState.RUNNING, -1).add(ChunkState.QUEUED, len(parts) - len(done))
        return settle_job(connection, job, parted.add(ChunkState.SUCCEEDED, len(done)))


def _result_of(claim: Claim) -> tuple[Any, Any]:
    return tables.results.c.job_id == claim.job.id, tables.results.c.number == claim.number


def _done(claim: Claim) -> dict[int, tuple[dict[str, Any], bytes | None]]:
    """What an earlier run left, by index: each item's result, and its vector."""
    rows = vectors_by_index(claim.previous or (), claim.previous_vectors)
    return {
        item["index"]: (item, vectors_to_bytes(rows[item["index"]]) if item["index"] in rows else None)
        for item in claim.standing
    }


def _values(
    row: dict[str, Any], part: NewChunk, number: int, done: tuple[dict[str, Any], Any] | None
) -> dict[str, Any]:
    failed = done is not None and done[0].get("error") is not None
    return {
        **row,
        "number": number,
        "state": ChunkState.QUEUED if done is None else ChunkState.SUCCEEDED,
        "max_attempts": row["max_attempts"] + 1,  # that it was claimed to be split was no attempt of any of them
        "lease_until": None,
        "worker": None,
        "published_at": None,
        "run_at": db_now(),
        "first_index": part.first_index,
        "n_items": 1,
        **source_columns(part.source),
        "succeeded": int(done is not None and not failed),
        "failed": int(failed),
        "finished_at": None if done is None else db_now(),
    }
