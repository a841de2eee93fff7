"""The promises of the store, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from revln.access import DEFAULT_TENANT, OWNER
from revln.db import tables
from revln.db.engine import Database
from revln.db.jobs import changes as job_changes
from revln.db.jobs import read as db_jobs
from revln.db.jobs import sweep, turns
from revln.db.jobs.chunks import Claim, claim_chunk, end_chunk, finish_chunk, heartbeat, release_chunk
from revln.db.jobs.dead_letters import bury_chunk
from revln.db.jobs.lists import JobFilter, list_jobs
from revln.db.jobs.results import result_items
from revln.errors import Conflict, IdempotencyMismatch, LeaseLost, NotFound
from revln.jobs.state import ChunkState, JobStatus
from tests.builders import let_leases_run_out, make_job, ok_result, take


def read(db: Database, job_id: str) -> db_jobs.Job:
    with db.read() as connection:
        return db_jobs.get_job(connection, job_id)


def finish(db: Database, claim: Claim, failed: int = 0) -> db_jobs.Job:
    return finish_chunk(db, claim, lambda _: ok_result(claim, failed))


def test_a_job_runs_through_queued_running_and_succeeded(db: Database) -> None:
    job = make_job(db, n_items=2)
    assert job.status is JobStatus.QUEUED
    first = take(db, job, 0)
    assert first.job.status is JobStatus.RUNNING
    assert finish(db, first).status is JobStatus.RUNNING
    done = finish(db, take(db, job, 1))
    assert (done.status, done.succeeded, done.failed) == (JobStatus.SUCCEEDED, 2, 0)
    assert done.started_at is not None
    assert done.finished_at is not None
    assert done.expires_at == pytest.approx(done.finished_at + 3600, abs=5)


def test_two_workers_claiming_one_chunk_gives_one_winner(db: Database) -> None:
    job = make_job(db, n_items=1)
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda n: claim_chunk(db, job.id, 0, f"w{n}", 30), range(16)))
    assert sum(claim is not None for claim in claims) == 1


def test_a_late_worker_cannot_write_over_the_one_that_took_over(db: Database) -> None:
    job = make_job(db, n_items=1)
    late = take(db, job)
    let_leases_run_out(db)
    assert sweep.recover_lost_chunks(db, 3) == [job.id]
    second = take(db, job, worker="w2")
    assert second.attempt == late.attempt + 1
    for write in (
        lambda: finish(db, late),
        lambda: release_chunk(db, late, None, 0, counted=True),
        lambda: bury_chunk(db, late, {"code": "x"}),
        lambda: end_chunk(db, late, ChunkState.CANCELED),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert heartbeat(db, [late, second], 30) == [False, True]
    assert finish(db, second).succeeded == 1


def test_a_renewed_lease_is_not_recovered(db: Database) -> None:
    job = make_job(db, n_items=1)
    claim = take(db, job)
    let_leases_run_out(db)
    assert heartbeat(db, [claim], 30) == [True]
    assert sweep.recover_lost_chunks(db, 3) == []


def test_a_chunk_that_keeps_killing_its_worker_becomes_a_dead_letter_with_an_error_for_each_item(db: Database) -> None:
    job = make_job(db, n_items=2, chunk_items=2)
    for _ in range(3):
        take(db, job)
        let_leases_run_out(db)
        sweep.recover_lost_chunks(db, 3)
    dead = read(db, job.id)
    assert (dead.status, dead.failed, dead.chunks_dead) == (JobStatus.FAILED, 2, 1)
    assert dead.error is not None
    assert dead.error["code"] == "worker_lost"
    with db.read() as connection:
        items = [item for item, _ in result_items(connection, job.id, 0, 10)]
    assert [(item["id"], item["error"]["code"]) for item in items] == [
        ("item-0", "worker_lost"),
        ("item-1", "worker_lost"),
    ]


def test_a_job_with_bad_items_succeeds_and_one_with_nothing_done_fails(db: Database) -> None:
    partly, wholly = make_job(db, 3, 3), make_job(db, 3, 3)
    assert finish(db, take(db, partly), failed=2).status is JobStatus.SUCCEEDED
    failed = finish(db, take(db, wholly), failed=3)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "all_items_failed"


def test_no_chunk_that_has_ended_has_a_lease(db: Database) -> None:
    job = make_job(db, n_items=5)
    finish(db, take(db, job, 0))
    bury_chunk(db, take(db, job, 1), {"code": "x", "detail": "", "retryable": False})
    release_chunk(db, take(db, job, 2), None, 0, counted=True)
    take(db, job, 3)
    end_chunk(db, take(db, job, 4), ChunkState.EXPIRED)
    columns = tables.chunks.c
    with db.read() as connection:
        leased = connection.execute(select(columns.number, columns.state).where(columns.lease_until.is_not(None))).all()
    assert leased == [(3, ChunkState.RUNNING)]


def test_retry_runs_only_what_failed_and_keeps_what_was_done(db: Database) -> None:
    job = make_job(db, n_items=4, chunk_items=2)
    finish(db, take(db, job, 0))
    finish(db, take(db, job, 1), failed=1)
    again = job_changes.retry_job(db, job.id, 5, OWNER)
    assert (again.status, again.succeeded, again.failed) == (JobStatus.RUNNING, 3, 0)
    assert claim_chunk(db, job.id, 0, "w", 30) is None, "a chunk without failures stays done"
    claim = take(db, job, 1)
    assert claim.previous is not None
    assert [item.get("error") is None for item in claim.previous] == [True, False]
    done = finish(db, claim)
    assert (done.status, done.succeeded, done.failed) == (JobStatus.SUCCEEDED, 4, 0)


def test_retry_of_a_job_that_did_well_or_is_open_is_a_conflict(db: Database) -> None:
    job = make_job(db, n_items=1)
    with pytest.raises(Conflict, match="queued"):
        job_changes.retry_job(db, job.id, 5, OWNER)
    finish(db, take(db, job))
    with pytest.raises(Conflict, match="Nothing"):
        job_changes.retry_job(db, job.id, 5, OWNER)


def test_a_dead_chunk_can_be_retried(db: Database) -> None:
    job = make_job(db, n_items=1)
    bury_chunk(db, take(db, job), {"code": "model_unavailable", "detail": "x", "retryable": False})
    assert read(db, job.id).status is JobStatus.FAILED
    assert job_changes.retry_job(db, job.id, 5, OWNER).error is None
    assert finish(db, take(db, job)).status is JobStatus.SUCCEEDED


def test_cancel_stops_queued_chunks_at_once_and_running_ones_when_they_end(db: Database) -> None:
    job = make_job(db, n_items=3)
    running = take(db, job, 0)
    asked = job_changes.cancel_job(db, job.id, OWNER)
    assert (asked.status, asked.chunks_canceled) == (JobStatus.RUNNING, 2)
    assert claim_chunk(db, job.id, 1, "w", 30) is None
    assert job_changes.cancel_job(db, job.id, OWNER).status is JobStatus.RUNNING, "asking twice is fine"
    assert end_chunk(db, running, ChunkState.CANCELED).status is JobStatus.CANCELED


def test_a_canceled_jobs_chunk_is_not_queued_again_by_a_release_or_a_crash(db: Database) -> None:
    released, crashed = make_job(db, 1), make_job(db, 1)
    claim = take(db, released)
    take(db, crashed)
    job_changes.cancel_job(db, released.id, OWNER)
    job_changes.cancel_job(db, crashed.id, OWNER)
    assert release_chunk(db, claim, None, 0, counted=True).status is JobStatus.CANCELED
    let_leases_run_out(db)
    sweep.recover_lost_chunks(db, 3)
    assert read(db, crashed.id).status is JobStatus.CANCELED


def test_canceling_a_finished_job_is_a_conflict(db: Database) -> None:
    job = make_job(db, n_items=1)
    finish(db, take(db, job))
    with pytest.raises(Conflict, match="succeeded"):
        job_changes.cancel_job(db, job.id, OWNER)


def test_a_chunk_handed_back_at_shutdown_loses_no_attempt(db: Database) -> None:
    job = make_job(db, n_items=1, max_attempts=1)
    release_chunk(db, take(db, job), None, 0, counted=False)
    assert finish(db, take(db, job)).status is JobStatus.SUCCEEDED


def test_a_released_chunk_is_not_claimed_before_its_time(db: Database) -> None:
    job = make_job(db, n_items=1)
    release_chunk(db, take(db, job), {"code": "x"}, 60, counted=True)
    assert claim_chunk(db, job.id, 0, "w", 30) is None
    assert turns.take_unpublished(db, "embed.normal", 10, 5, again=True) == []


def test_a_passed_deadline_expires_what_is_queued(db: Database) -> None:
    job = make_job(db, n_items=2, deadline_s=-1.0)
    assert sweep.expire_deadlines(db) == [job.id]
    expired = read(db, job.id)
    assert expired.status is JobStatus.EXPIRED
    assert expired.error is not None
    assert expired.error["code"] == "deadline_exceeded"


def test_a_job_that_nobody_started_in_time_expires_and_is_not_started_any_more(db: Database) -> None:
    job = make_job(db, n_items=2, starting_deadline_s=-1.0, deadline_s=600.0)
    assert claim_chunk(db, job.id, 0, "w", 30) is None
    assert sweep.expire_deadlines(db) == [job.id]
    error = read(db, job.id).error
    assert error is not None
    assert (error["code"], "before any of it was started" in error["detail"]) == ("deadline_exceeded", True)


def test_once_it_has_started_a_job_may_run_as_long_as_it_said(db: Database) -> None:
    job = make_job(db, n_items=2, starting_deadline_s=5.0, active_deadline_s=60.0, deadline_s=600.0)
    claim = take(db, job)
    assert claim.deadline_in_s == pytest.approx(60, abs=5)
    finish(db, claim)
    assert take(db, job, 1).job.deadline_at == claim.job.deadline_at  # not from each chunk's start


@pytest.mark.parametrize(("more", "left_s"), [({"deadline_s": 20.0}, 20), ({"deadline_s": 900.0}, 60), ({}, 60)])
def test_of_the_deadlines_of_a_job_that_runs_the_first_counts(
    db: Database, more: dict[str, float], left_s: float
) -> None:
    claim = take(db, make_job(db, n_items=1, active_deadline_s=60.0, **more))
    assert claim.deadline_in_s == pytest.approx(left_s, abs=5)


def test_a_retry_has_no_deadline(db: Database) -> None:
    job = make_job(db, n_items=1, starting_deadline_s=-1.0, active_deadline_s=1.0)
    sweep.expire_deadlines(db)
    job_changes.retry_job(db, job.id, 3, OWNER)
    assert take(db, job).deadline_in_s is None


def test_one_idempotency_key_from_fifty_threads_makes_one_job(db: Database) -> None:
    with ThreadPoolExecutor(16) as pool:
        jobs = list(pool.map(lambda _: make_job(db, 1, idempotency_key="k", request_sha256="a" * 64).id, range(50)))
    assert len(set(jobs)) == 1
    with db.read() as connection:
        assert len(list_jobs(connection, DEFAULT_TENANT, JobFilter(), 100)) == 1
    with pytest.raises(IdempotencyMismatch):
        make_job(db, 1, idempotency_key="k", request_sha256="b" * 64)


def test_listing_pages_through_every_job_once_newest_first(db: Database) -> None:
    made = [make_job(db, 1, metadata={}, tag="a" if n % 2 else "b").id for n in range(7)]
    seen: list[str] = []
    before = None
    with db.read() as connection:
        while page := list_jobs(connection, DEFAULT_TENANT, JobFilter(), 3, before):
            seen += [job.id for job in page]
            before = (page[-1].created_at, page[-1].id)
        tagged = list_jobs(connection, DEFAULT_TENANT, JobFilter(tag="a"), 10)
    assert sorted(seen) == sorted(made)
    assert len(tagged) == 3


def test_publishing_takes_each_chunk_once_until_it_is_asked_for_again(db: Database) -> None:
    job = make_job(db, n_items=3)
    first = turns.take_unpublished(db, "embed.normal", 2, 5.0, again=False)
    rest = turns.take_unpublished(db, "embed.normal", 9, 5.0, again=False)
    assert [one.number for one in first + rest] == [0, 1, 2]
    assert turns.take_unpublished(db, "embed.normal", 9, 5.0, again=True) == [], "published a moment ago"
    assert len(turns.take_unpublished(db, "embed.normal", 9, -1.0, again=True)) == 3
    assert turns.waiting_queues(db) == ["embed.normal"]
    assert {one.job_id for one in first} == {job.id}


def test_events_tell_the_story_in_order(db: Database) -> None:
    job = make_job(db, n_items=2)
    finish(db, take(db, job, 0))
    finish(db, take(db, job, 1))
    with db.read() as connection:
        events = db_jobs.events_after(connection, job.id, 0)
        later = db_jobs.events_after(connection, job.id, events[1]["id"])
    assert [event["type"] for event in events] == ["job.queued", "job.started", "job.progress", "job.succeeded"]
    assert events[-1]["data"] == {"total": 2, "succeeded": 2, "failed": 0}
    assert [event["type"] for event in later] == ["job.progress", "job.succeeded"]


def test_deleting_takes_everything_of_a_finished_job_and_nothing_of_an_open_one(db: Database) -> None:
    job, other = make_job(db, n_items=1), make_job(db, n_items=1)
    finish(db, take(db, job))
    job_changes.delete_job(db, job.id, OWNER)
    with pytest.raises(NotFound):
        read(db, job.id)
    with pytest.raises(Conflict):
        job_changes.delete_job(db, other.id, OWNER)
    with db.read() as connection:
        for table in (tables.chunks, tables.results, tables.events):
            owners = set(connection.scalars(select(table.c.job_id)))
            assert owners <= {other.id}, table.name


def test_a_job_deleted_under_its_worker_drops_the_result(db: Database) -> None:
    job = make_job(db, n_items=1)
    claim = take(db, job)
    with db.write() as connection:
        connection.execute(tables.jobs.delete())
    with pytest.raises(LeaseLost, match="deleted"):
        finish(db, claim)
    assert claim_chunk(db, job.id, 0, "w", 30) is None


def test_counters_equal_the_chunks_they_count(db: Database) -> None:
    job = make_job(db, n_items=6)
    finish(db, take(db, job, 0))
    bury_chunk(db, take(db, job, 1), {"code": "x", "detail": "", "retryable": False})
    take(db, job, 2)
    end_chunk(db, take(db, job, 3), ChunkState.EXPIRED)
    release_chunk(db, take(db, job, 4), None, 0, counted=True)
    row = read(db, job.id)
    with db.read() as connection:
        states = list(connection.scalars(select(tables.chunks.c.state).where(tables.chunks.c.job_id == job.id)))
    for state in ChunkState:
        assert getattr(row, f"chunks_{state}") == states.count(state), state
