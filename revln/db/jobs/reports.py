"""Results of any length, of jobs that have one chunk: as many rows as their length asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from revln.db import tables
from revln.db.jobs.read import Job
from revln.db.jobs.results import write_result
from revln.jobs.state import ChunkState

__all__ = ["begin_report_again", "write_report"]

_ROW_ITEMS = 500  # of a report; a page of it reads whole rows


def write_report(connection: Connection, key: tuple[str, int], attempt: int, items: Sequence[dict[str, Any]]) -> int:
    """Write a list of any length as the result of a job's only chunk; how many chunks were added to hold it.

    The added ones have succeeded and count nothing: what was done and what failed is on the first, which is retried.
    """
    job_id, number = key
    write_result(connection, key, attempt, (0, min(len(items), _ROW_ITEMS)), items[:_ROW_ITEMS])
    connection.execute(
        update(tables.chunks)
        .where(tables.chunks.c.job_id == job_id, tables.chunks.c.number == number)
        .values(n_items=len(items))
    )
    first = connection.execute(
        select(tables.chunks).where(tables.chunks.c.job_id == job_id, tables.chunks.c.number == number)
    ).one()
    added = 0
    for start in range(_ROW_ITEMS, len(items), _ROW_ITEMS):
        added += 1
        part = items[start : start + _ROW_ITEMS]
        counts_nothing = {"number": number + added, "first_index": start, "n_items": 0, "succeeded": 0, "failed": 0}
        chunk = {**first._mapping, **counts_nothing, "items": None, "state": ChunkState.SUCCEEDED}
        connection.execute(insert(tables.chunks).values(**chunk))
        write_result(connection, (job_id, number + added), attempt, (start, len(part)), part)
    return added


def begin_report_again(connection: Connection, job: Job) -> Job:
    """Set a locked job that writes a report back to its one chunk, without a result. Return it as it is then.

    Any other job is left as it is: its items that were done stay done.
    """
    chunks, results = tables.chunks.c, tables.results.c
    first = connection.execute(
        select(chunks["items"], chunks.n_items).where(chunks.job_id == job.id, chunks.number == 0)
    ).one_or_none()
    if first is None or first[0] != [None] or not job.succeeded + job.failed:
        return job
    connection.execute(delete(tables.results).where(results.job_id == job.id))
    added = connection.execute(delete(tables.chunks).where(chunks.job_id == job.id, chunks.number > 0)).rowcount
    connection.execute(
        update(tables.chunks).where(chunks.job_id == job.id, chunks.number == 0).values(n_items=1, succeeded=0)
    )
    return replace(job, total=1, succeeded=0, chunks_succeeded=job.chunks_succeeded - added)
