"""Whose turn it is: fair between tenants, whatever each of them has handed in, and one look-up however much waits."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text, update

from revln.access import OWNER, Caller
from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.jobs import changes as job_changes
from revln.db.jobs import turns
from revln.db.jobs.chunks import claim_chunk, finish_chunk, release_chunk
from revln.db.jobs.dead_letters import bury_chunk
from revln.db.jobs.read import Job
from revln.db.jobs.turns import Turn, due
from tests.builders import make_job, ok_result
from worker.turns import Turns

QUEUE = "embed.normal"
ANN, BOB, CAT = (replace(OWNER, tenant=name) for name in ("ann", "bob", "cat"))


def hand_in(db: Database, by: Caller, jobs: int, n_items: int = 1, chunk_items: int = 1) -> list[Job]:
    return [make_job(db, n_items, chunk_items, by=by) for _ in range(jobs)]


def waiting(db: Database, most: int = 1_000) -> list[Turn]:
    with db.read() as connection:
        return due(connection, QUEUE, most)


def served(db: Database, chunks: int) -> list[str]:
    """Run the next chunks in their turns; whose they were."""
    whose = []
    for _ in range(chunks):
        claim = claim_chunk(db, *waiting(db, 1)[0].address, "w", 30)
        assert claim is not None
        finish_chunk(db, claim, lambda _, claim=claim: ok_result(claim))
        whose.append(claim.job.tenant)
    return whose


def test_ten_jobs_beside_a_flood_are_done_within_twenty_turns(db: Database) -> None:
    hand_in(db, ANN, 40)
    assert set(served(db, 5)) == {"ann"}
    hand_in(db, BOB, 10)
    assert served(db, 20).count("bob") in (9, 10)
    assert served(db, 2).count("bob") <= 1


def test_a_chunk_of_many_items_counts_as_many(db: Database) -> None:
    hand_in(db, ANN, 4, n_items=64, chunk_items=64)
    served(db, 1)
    hand_in(db, BOB, 10)
    assert served(db, 10) == ["bob"] * 10, "ten items are less than one chunk of 64"


def test_who_comes_later_has_saved_nothing_up_and_owes_nothing(db: Database) -> None:
    hand_in(db, ANN, 6)
    served(db, 6)
    hand_in(db, ANN, 6)
    hand_in(db, BOB, 6)
    whose = served(db, 12)
    assert all(abs(whose[:n].count("ann") - whose[:n].count("bob")) <= 1 for n in range(13)), whose


def test_while_nothing_is_queued_the_turn_that_is_served_goes_on(db: Database) -> None:
    hand_in(db, ANN, 3)
    served(db, 2)
    running = claim_chunk(db, *waiting(db, 1)[0].address, "w", 30)
    assert running is not None
    (job,) = hand_in(db, BOB, 1)
    with db.read() as connection:
        turn = connection.scalar(select(tables.chunks.c.turn).where(tables.chunks.c.job_id == job.id))
    assert turn == 4


def test_what_is_retried_takes_new_turns_and_does_not_go_before_everybody(db: Database) -> None:
    (old,) = hand_in(db, ANN, 1, n_items=8)
    for number in range(8):
        claim = claim_chunk(db, old.id, number, "w", 30)
        assert claim is not None
        bury_chunk(db, claim, {"code": "x", "detail": "", "retryable": False})
    hand_in(db, CAT, 8)
    served(db, 4)
    job_changes.retry_job(db, old.id, 5, ANN)
    numbers = [turn.number for turn in waiting(db) if turn.job_id == old.id]
    assert numbers == list(range(8))
    whose = served(db, 8)
    assert whose.count("cat") == 4, whose


def test_what_was_handed_back_keeps_its_turn_and_does_not_hold_up_the_queue_while_it_backs_off(db: Database) -> None:
    first, second = hand_in(db, ANN, 2)
    claim = claim_chunk(db, first.id, 0, "w", 30)
    assert claim is not None
    release_chunk(db, claim, None, 60, counted=True)
    assert [turn.job_id for turn in waiting(db)] == [second.id]
    with db.write() as connection:
        connection.execute(update(tables.chunks).values(run_at=db_now()))
    assert [turn.job_id for turn in waiting(db)] == [first.id, second.id]


def test_what_nobody_may_claim_does_not_stand_at_the_head_of_the_queue(db: Database) -> None:
    stuck, next_ = hand_in(db, ANN, 2)
    with db.write() as connection:
        connection.execute(
            update(tables.chunks).where(tables.chunks.c.job_id == stuck.id).values(attempt=tables.chunks.c.max_attempts)
        )
    assert [turn.job_id for turn in waiting(db)] == [next_.id]


def test_a_message_used_up_for_an_unpublished_chunk_is_sent_again(db: Database) -> None:
    first, second = hand_in(db, ANN, 2)
    assert [one.job_id for one in turns.take_unpublished(db, QUEUE, 1, 5, again=False)] == [first.id]
    assert claim_chunk(db, second.id, 0, "w", 30, rung_by=(first.id, 0)) is not None
    assert [one.job_id for one in turns.take_unpublished(db, QUEUE, 9, 5, again=False)] == [first.id]


def test_a_message_used_up_for_a_published_chunk_leaves_that_ones_to_use(db: Database) -> None:
    first, second = hand_in(db, ANN, 2)
    assert len(turns.take_unpublished(db, QUEUE, 2, 5, again=False)) == 2
    assert claim_chunk(db, second.id, 0, "w", 30, rung_by=(first.id, 0)) is not None
    assert turns.take_unpublished(db, QUEUE, 9, 5, again=False) == []


def test_publishing_goes_by_turns_too(db: Database) -> None:
    hand_in(db, ANN, 5)
    (late,) = hand_in(db, BOB, 1)
    published = [one.job_id for one in turns.take_unpublished(db, QUEUE, 2, 5, again=False)]
    assert late.id in published


def test_threads_of_one_worker_are_given_different_chunks(db: Database) -> None:
    (job,) = hand_in(db, ANN, 1, n_items=3)
    mine = Turns(db, threads=2)
    with mine.next((job.id, 2)) as first, mine.next((job.id, 2)) as second:
        assert first is not None
        assert second is not None
        assert [first.address, second.address] == [(job.id, 0), (job.id, 1)], "not the one that the message named"
        mine.claimed(first)
    with mine.next((job.id, 0)) as third:
        assert third is not None
        assert third.number == 0, "it was never claimed in the end"
    with mine.next(("gone", 0)) as none:
        assert none is None


def test_half_of_the_threads_are_never_given_what_may_run_for_hours(db: Database) -> None:
    for _ in range(3):
        make_job(db, 1, kind="index", queue="index.normal", input={"operation": "build"})
    short = make_job(db, 1, kind="index", queue="index.normal", input={"operation": "upsert"})
    mine, message = Turns(db, threads=4), (short.id, 0)
    with mine.next(message), mine.next(message):
        with mine.next(message) as third:
            assert third is not None
            assert third.job_id == short.id
            mine.claimed(third)
        claim_chunk(db, short.id, 0, "w", 30)
        with mine.next(message) as none:
            assert none is None
    with mine.next(message) as again:
        assert again is not None


# --- one look-up, however much waits ---------------------------------------------------------------------------------


@pytest.fixture(params=["analyzed", "not analyzed"])
def crowded(db: Database, request: pytest.FixtureRequest) -> Database:
    """Thirty thousand chunks of two tenants, of which the database has statistics or has none."""
    busy, done = hand_in(db, ANN, 1)[0], hand_in(db, BOB, 1)[0]
    same = {"attempt": 0, "max_attempts": 5, "n_items": 1, "run_at": 0.0, "items": None}
    rows: list[dict[str, Any]] = [
        {"job_id": job.id, "number": number, "first_index": number, "state": state, "queue": queue, "tenant": tenant,
         "turn": number, **same}
        for job, state, queue, tenant in (
            (busy, "queued", QUEUE, "ann"), (done, "succeeded", QUEUE, "bob"), (done, "queued", "caption.bulk", "bob")
        )
        for number in range(1 + 10_000 * (queue == "caption.bulk"), 10_000 + 10_000 * (queue == "caption.bulk"))
    ]  # fmt: skip
    with db.write() as connection:
        connection.execute(insert(tables.chunks), rows)
        if request.param == "analyzed":
            connection.execute(text("ANALYZE"))
    return db


def plans(db: Database, ask: Any) -> list[str]:
    """How the database would answer what ``ask`` asks it."""
    asked: list[tuple[str, Any]] = []

    def listen(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().startswith(("SELECT", "SET")):
            asked.append((statement, parameters))

    event.listen(db.engine, "before_cursor_execute", listen)
    ask()
    event.remove(db.engine, "before_cursor_execute", listen)
    explain = "EXPLAIN QUERY PLAN " if db.is_sqlite else "EXPLAIN (FORMAT JSON) "
    with db.read() as connection:
        found = []
        for statement, given in asked:
            if statement.startswith("SET"):
                connection.exec_driver_sql(statement)
            else:
                found.append(connection.exec_driver_sql(explain + statement, given).all())
    return ["\n".join(str(row[-1]) if db.is_sqlite else json.dumps(row[0], indent=1) for row in rows) for rows in found]


def test_the_next_chunks_are_read_off_an_index_and_nothing_is_sorted(crowded: Database) -> None:
    def ask() -> None:
        with crowded.read() as connection:
            due(connection, QUEUE, 16)
            turns.last_turn(connection, "ann", QUEUE)
        turns.take_unpublished(crowded, QUEUE, 16, 5, again=True)
        turns.waiting_queues(crowded)

    found = plans(crowded, ask)
    assert len(found) == 4
    for plan in found:
        assert "ix_chunks_queue_t" in plan, plan
        assert "TEMP B-TREE" not in plan, plan
        assert '"Sort"' not in plan, plan
        assert "SCAN chunks" not in plan, plan
        # Two jobs are read whole; what matters is that the chunks are not.
        assert not re.search(r'"Seq Scan",((?!"Node Type").)*"Relation Name": "chunks"', plan, re.DOTALL), plan


def test_the_next_chunks_of_a_crowded_queue_are_in_order(crowded: Database) -> None:
    with crowded.read() as connection:
        found = due(connection, QUEUE, 16)
        order = [connection.scalar(select(tables.chunks.c.turn).where(tables.chunks.c.job_id == turn.job_id,
                                                                      tables.chunks.c.number == turn.number))
                 for turn in found]  # fmt: skip
    assert all(before <= after for before, after in pairwise(order))
    assert len(found) == 16
