"""Crashes, attempts and outages are counted apart, and what was computed outlives a database that is away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from revln.db.engine import Database
from revln.db.jobs import sweep
from revln.db.jobs.chunks import Claim, claim_chunk, finish_chunk
from revln.db.jobs.read import Job, events_after, get_job
from revln.errors import LeaseLost, ModelUnavailable, TimedOut, Unavailable
from revln.jobs.state import JobStatus
from revln.settings import Settings
from tests.builders import let_backoffs_end, let_leases_run_out, make_job, ok_result, take
from worker.endings import end_with, persist
from worker.leases import Lease
from worker.upkeep.sweeper import Sweeper

AWAY = Unavailable("The database does not answer.", database=True)


def read(db: Database, job: Job) -> Job:
    with db.read() as connection:
        return get_job(connection, job.id)


def runtime_of(db: Database) -> Any:
    return SimpleNamespace(db=db, settings=Settings(), dispatcher=SimpleNamespace(announce=lambda _: None))


def end(db: Database, claim: Claim, err: Exception) -> str:
    return end_with(runtime_of(db), Lease(claim, 60), err)


def at_once(db: Database, job: Job) -> Claim:
    """The chunk, claimed although its back-off is not over."""
    let_backoffs_end(db)
    return take(db, job)


def test_a_crash_uses_up_no_attempt(db: Database) -> None:
    job = make_job(db, n_items=1, max_attempts=1)
    for _ in range(2):
        take(db, job)
        let_leases_run_out(db)
        assert sweep.recover_lost_chunks(db, 3) == [job.id]
    claim = take(db, job)
    assert (claim.crash_count, finish_chunk(db, claim, lambda _: ok_result(claim)).status) == (2, JobStatus.SUCCEEDED)


def test_an_outage_of_the_database_uses_up_no_attempt_and_other_trouble_does(db: Database) -> None:
    job = make_job(db, n_items=1, max_attempts=2)
    for _ in range(5):
        assert "tried again" in end(db, at_once(db, job), AWAY)
    assert "tried again" in end(db, at_once(db, job), Unavailable("The blob store does not answer."))
    assert end(db, at_once(db, job), Unavailable("The blob store does not answer.")).startswith("dead")
    failed = read(db, job)
    assert (failed.status, failed.chunks_dead) == (JobStatus.FAILED, 1)
    assert failed.error is not None
    assert failed.error["detail"] == "The blob store does not answer."


def test_the_pause_before_a_retry_grows_with_each_failure_up_to_a_minute(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[float] = []
    monkeypatch.setattr("worker.endings.random.uniform", lambda _, high: most.append(high) or high)
    job = make_job(db, n_items=1)
    for _ in range(7):
        end(db, at_once(db, job), Unavailable())
        assert claim_chunk(db, job.id, 0, "w", 30) is None, "not before its time"
    assert most == [2, 4, 8, 16, 32, 60, 60]
    assert end(db, at_once(db, job), Unavailable()) == "dead after 8 attempts"


def test_what_cannot_get_better_is_not_tried_again(db: Database) -> None:
    job = make_job(db, n_items=1)
    assert end(db, take(db, job), ModelUnavailable("No such file.")).startswith("failed")
    assert read(db, job).status is JobStatus.FAILED


def test_a_chunk_that_runs_out_of_its_time_is_charged_a_crash_and_becomes_a_dead_letter(db: Database) -> None:
    job = make_job(db, n_items=1)
    for crashes in range(3):
        claim = take(db, job)
        assert claim.crash_count == crashes
        assert end(db, claim, TimedOut("Too long.")) == "timed out"
    dead = read(db, job)
    assert (dead.chunks_dead, dead.failed) == (1, 1)
    assert dead.error is not None
    assert dead.error["code"] == "worker_lost"
    assert "Too long." in dead.error["detail"]
    with db.read() as connection:
        told = [event["data"] for event in events_after(connection, job.id, 0) if event["type"] == "chunk.crashed"]
    assert [one["crashes"] for one in told] == [1, 2, 3]
    assert told[0]["error"]["code"] == "timed_out"


def test_what_was_computed_is_written_when_the_database_is_back(db: Database) -> None:
    job = make_job(db, n_items=1)
    claim = take(db, job)
    away = iter([AWAY] * 50)

    def write() -> None:
        for err in away:
            raise err
        finish_chunk(db, claim, lambda _: ok_result(claim))

    persist(Lease(claim, 60), write, again_s=0.0)
    assert read(db, job).status is JobStatus.SUCCEEDED


def test_a_worker_that_has_handed_its_chunk_back_waits_for_the_database_no_longer(db: Database) -> None:
    lease = Lease(take(db, make_job(db, n_items=1)), 60)
    lease.lost = True

    def write() -> None:
        raise AWAY

    with pytest.raises(LeaseLost):
        persist(lease, write)


def test_the_living_may_renew_their_leases_before_a_sweeper_that_found_no_database_recovers_them(db: Database) -> None:
    job = make_job(db, n_items=1)
    take(db, job)
    let_leases_run_out(db)
    away = iter([AWAY])

    def look() -> None:
        for err in away:
            raise err

    sweeper = Sweeper(Settings(), db, runtime_of(db).dispatcher, look)
    sweeper.recover()
    assert read(db, job).chunks_running == 1, "it has just begun"
    sweeper._recover_at = 0.0
    sweeper._call(2, look)
    sweeper.recover()
    assert read(db, job).chunks_running == 1
    sweeper._recover_at = 0.0
    sweeper.recover()
    assert read(db, job).chunks_queued == 1
