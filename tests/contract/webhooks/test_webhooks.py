"""The outbox and its claims, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, update

from revln.access import OWNER, Caller
from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.jobs.changes import cancel_job, delete_job, retry_job
from revln.db.jobs.chunks import end_chunk, finish_chunk, release_chunk
from revln.db.jobs.dead_letters import bury_chunk
from revln.db.jobs.read import Job, lock_job
from revln.db.jobs.settle import settle_job
from revln.db.jobs.sweep import expire_deadlines, recover_lost_chunks
from revln.db.retention import purge, retire_expired
from revln.db.webhooks.deliveries import Delivery, Outcome, claim_deliveries, delete_old, give_up, record
from revln.db.webhooks.secrets import rotate_secret, webhook_secrets
from revln.errors import LeaseLost
from revln.jobs.state import ChunkState
from revln.jobs.webhooks import DeliveryState, WebhookEvent
from tests.builders import make_job, ok_result, take

ANA = Caller("a", "test", frozenset())
EVERYTHING = [event.value for event in WebhookEvent]


def hook(url: str = "https://hooks.test/a", events: list[str] | None = None, **more: Any) -> dict[str, Any]:
    origin = "/".join(url.split("/")[:3])
    return {"url": url, "origin": origin, "events": events or EVERYTHING, "progress_s": 3600.0, **more}


def told(db: Database, job: Job) -> list[tuple[str, dict[str, Any]]]:
    columns = tables.deliveries.c
    with db.read() as connection:
        rows = connection.execute(
            select(columns.type, columns.data).where(columns.job_id == job.id).order_by(columns.created_at, columns.id)
        )
        return [(row.type, row.data) for row in rows]


def types(db: Database, job: Job) -> list[str]:
    return [event for event, _ in told(db, job)]


def claim(db: Database, most: int = 100, room: int = 100, **more: Any) -> list[Delivery]:
    return claim_deliveries(db, most, **{"rooms": {}, "room": room, "shut": [], "lease_s": 3600.0, **more})


def later(db: Database, seconds: float) -> None:
    """Let time pass for every delivery."""
    columns = tables.deliveries.c
    with db.write() as connection:
        connection.execute(
            update(tables.deliveries).values(
                due_at=columns.due_at - seconds,
                lease_until=columns.lease_until - seconds,
                give_up_at=columns.give_up_at - seconds,
                created_at=columns.created_at - seconds,
                settled_at=columns.settled_at - seconds,
            )
        )


def states(db: Database) -> list[str]:
    with db.read() as connection:
        return list(connection.scalars(select(tables.deliveries.c.state).order_by(tables.deliveries.c.id)))


DONE = Outcome(DeliveryState.DELIVERED, 200)


# --- what is told -------------------------------------------------------------------------------------------------


def test_a_job_tells_of_its_start_and_its_end_as_it_was_then(db: Database) -> None:
    job = make_job(db, n_items=2, webhook=hook(), metadata={"order": 17})
    assert types(db, job) == []
    for number in (0, 1):
        mine = take(db, job, number)
        finish_chunk(db, mine, lambda _, mine=mine: ok_result(mine, failed=mine.number))  # type: ignore[misc]
    (first, started), (last, ended) = told(db, job)
    assert (first, last) == ("job.started", "job.succeeded")
    assert started["counts"] == {"total": 2, "succeeded": 0, "failed": 0}
    assert (started["status"], started["done"], started["finished_at"]) == ("running", False, None)
    assert ended["counts"] == {"total": 2, "succeeded": 1, "failed": 1}
    assert (ended["status"], ended["done"], ended["metadata"]) == ("succeeded", True, {"order": 17})
    assert ended["version"] > started["version"]
    assert ended["finished_at"].endswith("Z")


@pytest.mark.parametrize("end", [ChunkState.CANCELED, ChunkState.EXPIRED])
def test_a_job_tells_that_it_was_canceled_or_expired(db: Database, end: ChunkState) -> None:
    job = make_job(db, n_items=1, webhook=hook(events=[f"job.{end}"]))
    end_chunk(db, take(db, job), end)
    assert types(db, job) == [f"job.{end}"]


def test_what_the_sweeper_ends_is_told_too(db: Database) -> None:
    late = make_job(db, n_items=1, webhook=hook(), deadline_s=-1.0)
    lost = make_job(db, n_items=1, webhook=hook())
    take(db, lost, lease_s=-1.0)
    expire_deadlines(db)
    recover_lost_chunks(db, max_crashes=1)
    assert types(db, late) == ["job.expired"]
    assert types(db, lost) == ["job.started", "job.failed"]


def test_a_failed_job_that_is_retried_tells_it_again(db: Database) -> None:
    job = make_job(db, n_items=1, webhook=hook())
    bury_chunk(db, take(db, job), {"code": "worker_lost", "detail": "gone", "retryable": False})
    retry_job(db, job.id, 1, OWNER)
    mine = take(db, job)
    finish_chunk(db, mine, lambda _: ok_result(mine))
    assert types(db, job) == ["job.started", "job.failed", "job.started", "job.succeeded"]


def test_only_what_was_asked_for_is_told_and_nothing_without_a_webhook(db: Database) -> None:
    chosen, silent = make_job(db, n_items=1, webhook=hook(events=["job.canceled"])), make_job(db, n_items=1)
    for job in (chosen, silent):
        take(db, job)
        cancel_job(db, job.id, OWNER)
    assert types(db, chosen) == []  # cancellation was asked for; the chunk still runs
    assert types(db, silent) == []


def _cancel_and_fail(connection: Connection, job_id: str) -> None:
    job = lock_job(connection, job_id)
    settle_job(connection, job, job.tally.move(ChunkState.QUEUED, ChunkState.CANCELED))
    raise RuntimeError


def test_nothing_is_told_of_a_change_that_was_rolled_back(db: Database) -> None:
    job = make_job(db, n_items=1, webhook=hook())
    with pytest.raises(RuntimeError), db.write() as connection:
        _cancel_and_fail(connection, job.id)
    assert types(db, job) == []


def test_a_late_result_that_is_fenced_off_tells_nothing(db: Database) -> None:
    job = make_job(db, n_items=1, webhook=hook())
    mine = take(db, job)
    release_chunk(db, mine, None, 0.0, counted=False)
    with pytest.raises(LeaseLost):
        finish_chunk(db, mine, lambda _: ok_result(mine))
    assert types(db, job) == ["job.started"]


# --- progress is thinned ------------------------------------------------------------------------------------------


def finish(db: Database, job: Job, *numbers: int) -> None:
    for number in numbers:
        mine = take(db, job, number)
        finish_chunk(db, mine, lambda _, mine=mine: ok_result(mine))  # type: ignore[misc]


def test_progress_that_waits_is_replaced_by_newer_progress(db: Database) -> None:
    job = make_job(db, n_items=6, webhook=hook(events=["job.progress"]))
    finish(db, job, 0, 1, 2)
    ((event, data),) = told(db, job)
    assert (event, data["counts"]["succeeded"]) == ("job.progress", 3)
    later(db, 3000.0)  # no sender was there: what counts is when it was really sent
    (first,) = claim(db)
    assert first.data["counts"]["succeeded"] == 3
    finish(db, job, 3, 4)  # while the first is under way
    assert record(db, first, DONE)
    assert claim(db) == []  # not before an hour after the first was sent
    later(db, 3000.0)
    assert claim(db) == []
    later(db, 601.0)
    (second,) = claim(db)
    assert second.data["counts"]["succeeded"] == 5
    assert second.id != first.id


def test_the_end_takes_the_place_of_progress_that_waits(db: Database) -> None:
    job = make_job(db, n_items=3, webhook=hook(events=["job.progress", "job.succeeded"]))
    finish(db, job, 0)
    (sent,) = claim(db)
    finish(db, job, 1, 2)
    assert types(db, job) == ["job.progress", "job.succeeded"]
    assert record(db, sent, DONE)
    assert [each.type for each in claim(db)] == ["job.succeeded"]


# --- claims -------------------------------------------------------------------------------------------------------


def end_jobs(db: Database, count: int, url: str = "https://hooks.test/a") -> list[Job]:
    jobs = [make_job(db, n_items=1, webhook=hook(url, events=["job.canceled"])) for _ in range(count)]
    for job in jobs:
        cancel_job(db, job.id, OWNER)
    return jobs


def test_any_number_of_senders_at_once_claim_each_delivery_once(db: Database) -> None:
    end_jobs(db, 24)
    with ThreadPoolExecutor(8) as pool:
        batches = list(pool.map(lambda _: claim(db, most=3), range(16)))
    while more := claim(db):  # what the others held locked just then
        batches.append(more)
    ids = [delivery.id for batch in batches for delivery in batch]
    assert len(ids) == len(set(ids)) == 24
    assert all(delivery.attempts == 1 for batch in batches for delivery in batch)


def test_a_sender_that_dies_loses_its_lease_and_the_delivery_is_made_again_under_the_same_id(db: Database) -> None:
    end_jobs(db, 1)
    (mine,) = claim(db)
    later(db, 3000.0)
    assert claim(db) == []
    later(db, 601.0)
    (again,) = claim(db)
    assert (again.id, again.attempts, again.data) == (mine.id, 2, mine.data)
    # The first was not dead after all: its word comes too late.
    assert not record(db, mine, Outcome(DeliveryState.FAILED, 500, "answered 500"))
    assert record(db, again, DONE)
    assert not record(db, again, DONE)
    assert states(db) == ["delivered"]


def test_a_failed_attempt_is_due_again_after_its_delay(db: Database) -> None:
    end_jobs(db, 1)
    (mine,) = claim(db)
    assert record(db, mine, Outcome(DeliveryState.PENDING, 500, "answered 500", 3600.0))
    later(db, 3000.0)
    assert claim(db) == []
    later(db, 601.0)
    (again,) = claim(db)
    assert again.tries == 2


def test_a_receiver_with_many_events_leaves_room_for_the_others(db: Database) -> None:
    end_jobs(db, 20, "https://busy.test/a")
    end_jobs(db, 1, "https://calm.test/a")
    for _ in range(5):  # in whatever order they are looked at
        claimed = claim(db, most=8, room=4)
        lanes = [delivery.lane for delivery in claimed]
        assert lanes.count("default https://calm.test") == 1
        assert lanes.count("default https://busy.test") == 4
        later(db, 3601.0)


def test_lanes_that_are_full_or_shut_are_passed_over(db: Database) -> None:
    for name in ("full", "shut", "one", "open"):
        end_jobs(db, 5, f"https://{name}.test/a")
    lane = "default https://{}.test".format
    claimed = claim(db, room=3, rooms={lane("full"): 0, lane("one"): 1}, shut=[lane("shut")])
    assert sorted(delivery.lane for delivery in claimed) == [lane("one"), *[lane("open")] * 3]


def test_a_receiver_that_is_gone_is_asked_no_more_at_that_url(db: Database) -> None:
    end_jobs(db, 3, "https://hooks.test/gone")
    (first,) = claim(db, most=1)
    assert record(db, first, Outcome(DeliveryState.DISABLED, 410, "answered 410"))
    end_jobs(db, 1, "https://hooks.test/here")
    end_jobs(db, 1, "https://hooks.test/gone")
    assert [delivery.url for delivery in claim(db)] == ["https://hooks.test/here"]
    assert states(db) == ["disabled", "disabled", "disabled", "pending", "disabled"]
    assert claim(db) == []


def test_every_attempt_is_in_the_log_also_one_whose_worker_died(db: Database) -> None:
    end_jobs(db, 1)
    claim(db)
    later(db, 3601.0)
    (mine,) = claim(db)
    record(db, mine, Outcome(DeliveryState.PENDING, 500, "answered 500", 5.0))
    columns = tables.delivery_attempts.c
    with db.read() as connection:
        rows = connection.execute(
            select(columns.number, columns.status, columns.error, columns.finished_at).order_by(columns.number)
        ).all()
    assert [tuple(row)[:3] for row in rows] == [(1, None, None), (2, 500, "answered 500")]
    assert [row.finished_at is None for row in rows] == [True, False]


# --- what is kept -------------------------------------------------------------------------------------------------


def test_the_end_of_a_job_is_told_also_after_the_job_expired(db: Database) -> None:
    (job,) = end_jobs(db, 1)
    with db.write() as connection:
        connection.execute(update(tables.jobs).values(expires_at=db_now() - 1))
    assert retire_expired(db)
    assert purge(db, 100)
    assert [delivery.job_id for delivery in claim(db)] == [job.id]


def test_deleting_a_job_deletes_what_was_told_of_it_and_what_was_to_be(db: Database) -> None:
    job, other = end_jobs(db, 2)
    claim(db)
    delete_job(db, job.id, OWNER)
    assert types(db, job) == []
    assert types(db, other) == ["job.canceled"]
    with db.read() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.delivery_attempts)) == 1


def test_the_log_is_kept_for_its_time_and_what_waits_is_not_touched(db: Database) -> None:
    end_jobs(db, 2)
    (first,) = claim(db, most=1)
    record(db, first, DONE)
    later(db, 3600.0)
    assert delete_old(db, 7200.0, 100) == 0
    assert delete_old(db, 3600.0, 100) == 1
    assert states(db) == ["pending"]


def test_what_could_not_be_tried_for_days_is_given_up(db: Database) -> None:
    end_jobs(db, 1)
    assert give_up(db, 100) == 0
    later(db, 5 * 86_400.0)
    assert give_up(db, 100) == 1
    assert states(db) == ["failed"]


# --- secrets ------------------------------------------------------------------------------------------------------


def test_a_tenant_has_one_secret_however_many_ask_first(db: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = {
            tuple(each.secret for each in secrets)
            for secrets in pool.map(lambda _: webhook_secrets(db, "a"), range(16))
        }
    ((secret,),) = found
    assert secret.startswith("whsec_")
    assert webhook_secrets(db, "b")[0].secret != secret


def test_a_replaced_secret_holds_for_its_overlap_and_no_longer(db: Database) -> None:
    (old,) = webhook_secrets(db, "a")
    new, kept = rotate_secret(db, ANA, None, 3600.0)
    assert kept.secret == old.secret
    assert new.secret != old.secret
    assert (new.expires_at, kept.expires_at is None) == (None, False)
    with db.write() as connection:
        connection.execute(
            update(tables.webhook_secrets).values(expires_at=tables.webhook_secrets.c.expires_at - 3601.0)
        )
    assert [each.secret for each in webhook_secrets(db, "a")] == [new.secret]
    (at_once,) = rotate_secret(db, ANA, "whsec_" + "A" * 43 + "=", 0.0)
    assert at_once.secret == "whsec_" + "A" * 43 + "="


def test_no_secret_shows_in_a_repr(db: Database) -> None:
    (secret,) = webhook_secrets(db, "a")
    assert secret.secret not in repr(secret)
    end_jobs(db, 1, "https://hooks.test/a?token=hunter2")
    assert "hunter2" not in repr(claim(db))
