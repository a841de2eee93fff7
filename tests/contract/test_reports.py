"""Reports: results of one chunk whose length nobody knows before."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select

from revln.access import OWNER
from revln.db import tables
from revln.db.engine import Database
from revln.db.jobs.changes import retry_job
from revln.db.jobs.chunks import ChunkResult, finish_chunk
from revln.db.jobs.read import Job
from revln.db.jobs.results import result_items
from revln.db.jobs.submit import Inline, NewChunk
from revln.errors import Conflict
from tests.builders import make_job, take


def report(length: int, failed: int = 0) -> ChunkResult:
    error = {"code": "item_failed", "detail": "bad", "retryable": False}
    items = [
        {"index": at, "id": str(at), **({"error": error} if at >= length - failed else {})} for at in range(length)
    ]
    return ChunkResult(items, open_ended=True)


def finish(db: Database, job: Job, result: ChunkResult) -> Job:
    return finish_chunk(db, take(db, job), lambda _: result)


def new_job(db: Database) -> Job:
    return make_job(db, 1, chunks=[NewChunk(0, 1, Inline([None]))])


def page(db: Database, job: Job, offset: int, limit: int) -> list[Any]:
    with db.read() as connection:
        return [item["index"] for item, _ in result_items(connection, job.id, offset, limit)]


@pytest.mark.parametrize("length", [1, 500, 501, 1203])
def test_a_report_of_any_length_is_read_a_page_at_a_time(db: Database, length: int) -> None:
    done = finish(db, new_job(db), report(length))
    assert (done.status, done.total, done.succeeded, done.failed) == ("succeeded", length, length, 0)
    assert page(db, done, 0, 10_000) == list(range(length))
    assert page(db, done, 495, 10) == list(range(length))[495:505]
    with db.read() as connection:
        chunks = tables.chunks.c
        counted = select(func.count(), func.sum(chunks.n_items), func.sum(chunks.succeeded)).where(
            chunks.job_id == done.id, chunks.state == "succeeded"
        )
        assert connection.execute(counted).one() == (done.chunks_succeeded, length, length)
    with pytest.raises(Conflict, match="nothing to retry"):
        retry_job(db, done.id, 5, OWNER)


def test_a_report_that_is_retried_begins_again(db: Database) -> None:
    first = finish(db, new_job(db), report(1203, failed=2))
    assert (first.status, first.succeeded, first.failed) == ("succeeded", 1201, 2)
    again = retry_job(db, first.id, 5, OWNER)
    assert (again.status, again.total, again.succeeded, again.failed) == ("queued", 1, 0, 0)
    assert (again.chunks_queued, again.chunks_succeeded) == (1, 0)
    assert page(db, again, 0, 10_000) == []
    second = finish(db, again, report(600))
    assert (second.status, second.total, second.succeeded, second.failed) == ("succeeded", 600, 600, 0)
    assert second.chunks_succeeded == 2
    assert page(db, second, 0, 10_000) == list(range(600))
