"""What has had its time is gone for everybody at once, and its rows go in small steps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import func, select

from revln.access import DEFAULT_TENANT, OWNER
from revln.db import retention, tables
from revln.db.collections.collections import Collection, delete_collection
from revln.db.collections.log import LogEntry, append_log
from revln.db.engine import Database
from revln.db.jobs import changes as job_changes
from revln.db.jobs.chunks import claim_chunk, finish_chunk
from revln.db.jobs.lists import JobFilter, count_by_status, list_jobs
from revln.db.jobs.read import Job, get_job
from revln.errors import Conflict, NotFound
from revln.jobs.state import JobStatus
from tests.builders import make_job, ok_result, take
from tests.collections import clustered, make_collection, write
from worker.upkeep.retention import in_steps

OF_A_JOB = (tables.jobs, tables.chunks, tables.results, tables.events)


def done_job(db: Database, n_items: int = 1, **changes: Any) -> Job:
    job = make_job(db, n_items, **changes)
    for number in range(n_items):
        job = finish_chunk(db, claim := take(db, job, number), lambda _, claim=claim: ok_result(claim))
    return job


def rows(db: Database) -> dict[str, int]:
    with db.read() as connection:
        return {table.name: connection.scalar(select(func.count()).select_from(table)) or 0 for table in OF_A_JOB}


def test_jobs_past_their_retention_are_gone_and_younger_and_open_ones_stay(db: Database) -> None:
    old, young, open_ = done_job(db, retention_s=-1.0), done_job(db), make_job(db, 1, retention_s=-1.0)
    assert retention.retire_expired(db) == 1
    with db.read() as connection:
        with pytest.raises(NotFound):
            get_job(connection, old.id)
        assert {job.id for job in list_jobs(connection, DEFAULT_TENANT, JobFilter(), 10)} == {young.id, open_.id}
        assert sum(count for _, _, count, _ in count_by_status(connection)) == 2
    while retention.purge(db, 100):
        pass
    assert rows(db) == {"jobs": 2, "chunks": 2, "results": 1, "events": 4}


def test_a_large_job_is_gone_at_once_and_its_rows_go_in_steps_of_the_size_asked_for(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_changes, "_AT_ONCE", 11)
    job = done_job(db, n_items=12, idempotency_key="k", request_sha256="a" * 64)
    before = rows(db)
    job_changes.delete_job(db, job.id, OWNER)
    with db.read() as connection, pytest.raises(NotFound):
        get_job(connection, job.id)
    for change in (job_changes.delete_job, job_changes.cancel_job):
        with pytest.raises(NotFound):
            change(db, job.id, OWNER)
    with pytest.raises(NotFound):
        job_changes.retry_job(db, job.id, 5, OWNER)
    assert claim_chunk(db, job.id, 0, "w", 30) is None
    assert make_job(db, 1, idempotency_key="k", request_sha256="b" * 64).id != job.id, "its key is free again"

    steps, most = [], 7
    while removed := retention.purge(db, most):
        steps.append(removed)
    assert max(steps) <= most
    # Results go with their chunks; they are not counted.
    assert sum(steps) == before["chunks"] + before["events"] + 1
    assert rows(db) == {"jobs": 1, "chunks": 1, "results": 0, "events": 1}


def test_a_deleted_collection_goes_in_steps_and_a_new_one_of_its_name_keeps_all(db: Database) -> None:
    old = make_collection(db, 4)
    write(db, old, some(20))
    with db.write() as connection:
        append_log(connection, old.id, [LogEntry("delete", "i0")])
    delete_collection(db, OWNER, "c")
    new = make_collection(db, 4)
    write(db, new, some(5))
    assert left(db, old) == (21, 19)
    assert retention.purge_collections(db, 7) == 7
    # Whoever did that was killed then; somebody else goes on.
    steps = [7]
    while removed := retention.purge_collections(db, 7):
        steps.append(removed)
    assert max(steps) == 7
    assert sum(steps) == 21 + 19 + 1
    assert left(db, old) == (0, 0)
    assert left(db, new) == (5, 5)


def test_two_who_remove_collections_take_one_each(db: Database) -> None:
    for name in ("one", "two"):
        write(db, make_collection(db, 4, name), some(3))
        delete_collection(db, OWNER, name)
    with ThreadPoolExecutor(2) as pool:
        while any(pool.map(lambda _: retention.purge_collections(db, 2), range(2))):
            pass
    with db.read() as connection:
        for table in (tables.vectors, tables.items, tables.retired_collections):
            assert connection.execute(select(table)).all() == []


def test_a_generation_that_serves_after_all_is_not_removed(db: Database) -> None:
    c = make_collection(db, 4)
    write(db, c, some(3))
    with db.write() as connection:
        assert retention.retire_collections(connection, tables.collections.c.shadow_of == c.id) == 0
    assert retention.purge_collections(db, 100) == 0
    assert left(db, c) == (3, 3)


def some(rows: int) -> dict[str, NDArray[np.float32] | None]:
    return {f"i{at}": vector for at, vector in enumerate(clustered(rows, 4, 0))}


def left(db: Database, collection: Collection) -> tuple[int, ...]:
    """Rows of its log, and items."""
    with db.read() as connection:
        return tuple(
            connection.scalar(
                select(func.count()).select_from(table).where(table.c.collection_id == collection.id)
            ) or 0
            for table in (tables.vectors, tables.items)
        )  # fmt: skip


def test_deleting_takes_everything_of_a_small_job_within_the_request(db: Database) -> None:
    job = done_job(db, n_items=3)
    job_changes.delete_job(db, job.id, OWNER)
    assert set(rows(db).values()) == {0}


def test_a_job_that_is_retried_as_its_retention_ends_stays(db: Database) -> None:
    job = make_job(db, 1, retention_s=-1.0)
    claim = take(db, job)
    finish_chunk(db, claim, lambda _: ok_result(claim, failed=1))
    job_changes.retry_job(db, job.id, 5, OWNER)
    assert retention.retire_expired(db) == 0
    with db.read() as connection:
        assert get_job(connection, job.id).status is JobStatus.QUEUED
    with pytest.raises(Conflict):
        job_changes.delete_job(db, job.id, OWNER)


def test_steps_follow_how_long_they_hold_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    asked: list[int] = []
    monkeypatch.setattr("worker.upkeep.retention.time.monotonic", lambda: now)
    pauses: list[float] = []
    stop = Event()
    monkeypatch.setattr(stop, "wait", pauses.append)

    def remove(most: int) -> int:
        nonlocal now
        now += most * 0.001  # a millisecond a row: fifty rows are as many as fit
        asked.append(most)
        return most if len(asked) < 6 else 0

    assert in_steps(remove, stop) == sum(asked[:-1])
    assert asked[1:] == pytest.approx([50] * (len(asked) - 1), abs=1)
    assert pauses == pytest.approx([most * 0.001 for most in asked[:-1]])
