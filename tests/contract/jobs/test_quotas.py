"""Never more waits than the quotas allow, whoever hands in how much at once; and what ends frees its room."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select, update

from revln.access import OWNER
from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.jobs import changes as job_changes
from revln.db.jobs import sweep
from revln.db.jobs.chunks import finish_chunk
from revln.db.jobs.dead_letters import bury_chunk
from revln.db.jobs.read import OPEN, Job
from revln.db.jobs.usage import Quotas, Usage, mend_usage, total_usage
from revln.errors import TooBusy
from tests.builders import make_job, ok_result, take

ANN, BOB = replace(OWNER, tenant="ann"), replace(OWNER, tenant="bob")
ANNS_KEY = replace(ANN, key_id="k1")


def used(db: Database, *whose: str) -> Usage:
    with db.read() as connection:
        return total_usage(connection, *whose)


def finish(db: Database, job: Job, number: int = 0) -> Job:
    claim = take(db, job, number)
    return finish_chunk(db, claim, lambda _: ok_result(claim))


@pytest.mark.parametrize("quotas", [Quotas(tenant_items=20), Quotas(items=20), Quotas(key_items=20)])
def test_fifty_submissions_at_once_do_not_pass_a_quota(db: Database, quotas: Quotas) -> None:
    def hand_in(number: int) -> bool:
        by = ANNS_KEY if quotas.key_items or number % 2 else replace(ANN, key_id="k2")
        try:
            make_job(db, n_items=3, chunk_items=3, by=by, quotas=quotas)
        except TooBusy:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        accepted = sum(pool.map(hand_in, range(24)))
    assert accepted == 6
    with db.read() as connection:
        assert connection.scalar(select(func.sum(tables.jobs.c.total)).where(OPEN)) == 18
    assert used(db).items == 18


def test_bytes_have_a_quota_too_and_are_free_when_the_job_has_ended(db: Database) -> None:
    quotas = Quotas(tenant_bytes=1_000)
    job = make_job(db, 1, by=ANN, size_bytes=700, quotas=quotas)
    with pytest.raises(TooBusy, match="700 bytes of tenant ann wait already and this job has 301; at most 1,000"):
        make_job(db, 1, by=ANN, size_bytes=301, quotas=quotas)
    make_job(db, 1, by=ANN, size_bytes=300, quotas=quotas)
    finish(db, job)
    assert used(db, "ann") == Usage(1, 300)
    make_job(db, 1, by=ANN, size_bytes=700, quotas=quotas)


def test_one_tenants_full_quota_is_no_other_tenants_and_one_keys_no_other_keys(db: Database) -> None:
    quotas = Quotas(tenant_items=4, key_items=2)
    make_job(db, 2, by=ANNS_KEY, quotas=quotas)
    with pytest.raises(TooBusy, match="of key k1"):
        make_job(db, 1, by=ANNS_KEY, quotas=quotas)
    make_job(db, 2, by=replace(ANN, key_id="k2"), quotas=quotas)
    with pytest.raises(TooBusy, match="of tenant ann"):
        make_job(db, 1, by=ANN, quotas=quotas)
    make_job(db, 4, by=BOB, quotas=quotas)


def test_what_was_refused_leaves_nothing_behind(db: Database) -> None:
    for quotas in (Quotas(tenant_items=1), Quotas(items=1)):
        with pytest.raises(TooBusy):
            make_job(db, 2, by=ANN, quotas=quotas)
    with db.read() as connection:
        for table in (tables.jobs, tables.chunks, tables.events, tables.audit):
            assert connection.scalar(select(func.count()).select_from(table)) == 0, table.name
    assert used(db) == Usage()


def test_an_idempotent_repeat_is_answered_though_the_quota_is_full(db: Database) -> None:
    again = {"idempotency_key": "k", "request_sha256": "a" * 64, "quotas": Quotas(tenant_items=1)}
    assert make_job(db, 1, **again).id == make_job(db, 1, **again).id
    assert used(db).items == 1


def _canceled(db: Database, job: Job) -> None:
    job_changes.cancel_job(db, job.id, ANN)


def _expired(db: Database, job: Job) -> None:
    with db.write() as connection:
        connection.execute(update(tables.jobs).where(tables.jobs.c.id == job.id).values(deadline_at=db_now() - 1))
    sweep.expire_deadlines(db)


def _buried(db: Database, job: Job) -> None:
    for number in range(3):
        bury_chunk(db, take(db, job, number), {"code": "x", "detail": "", "retryable": False})


def _finished(db: Database, job: Job) -> None:
    for number in range(3):
        finish(db, job, number)


@pytest.mark.parametrize("end", [_canceled, _expired, _buried, _finished])
def test_whatever_ends_frees_its_room(db: Database, end: Callable[[Database, Job], None]) -> None:
    job = make_job(db, 3, by=ANNS_KEY, size_bytes=10)
    other = make_job(db, 1, by=BOB, size_bytes=1)
    assert used(db) == Usage(4, 11)
    end(db, job)
    with db.read() as connection:
        assert not connection.scalar(select(func.count()).where(OPEN, tables.jobs.c.id == job.id))
    assert used(db, "ann", "k1") == Usage(0, 0)
    assert used(db) == Usage(1, 1)
    assert mend_usage(db) == 0
    finish(db, other)


def test_items_are_free_as_they_are_done_and_come_back_with_a_retry(db: Database) -> None:
    job = make_job(db, 3, by=ANN, size_bytes=10)
    finish(db, job, 0)
    assert used(db) == Usage(2, 10)
    _canceled(db, job)
    with pytest.raises(TooBusy):
        job_changes.retry_job(db, job.id, 5, ANN, Quotas(tenant_items=1))
    assert used(db) == Usage(0, 0)
    job_changes.retry_job(db, job.id, 5, ANN, Quotas(tenant_items=2))
    assert used(db) == Usage(2, 10)
    assert mend_usage(db) == 0


def test_what_an_older_process_counted_wrongly_is_mended(db: Database) -> None:
    make_job(db, 3, by=ANN, size_bytes=7)
    with db.write() as connection:
        connection.execute(update(tables.usage).values(queued_items=99, queued_bytes=-1))
    assert mend_usage(db) == 1
    assert used(db) == Usage(3, 7)


def _rate(db: Database, items: int) -> None:
    """Let so many items of ann's have been done within the last minute."""
    job = make_job(db, items, chunk_items=items, by=ANN)
    finish(db, job)


@pytest.mark.parametrize(
    ("done", "waiting", "wanted", "most", "again_s"),
    [
        (60, 100, 10, 100, 10),  # one item a second, ten too many
        (600, 100, 10, 100, 5),  # a second, but nobody should come again so soon
        (60, 100, 10, 109, 5),
        (0, 100, 10, 100, 60),  # nothing is known yet
    ],
)
def test_when_to_come_again_follows_from_what_was_done_in_the_last_minute(
    db: Database, done: int, waiting: int, wanted: int, most: int, again_s: int
) -> None:
    if done:
        _rate(db, done)
    make_job(db, waiting, chunk_items=100, by=ANN)
    tell: dict[str, Any] = {"by": ANN, "quotas": Quotas(tenant_items=most)}
    with pytest.raises(TooBusy) as caught:
        make_job(db, wanted, chunk_items=100, **tell)
    assert caught.value.retry_after_s == again_s
