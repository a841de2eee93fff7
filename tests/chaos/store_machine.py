"""The store beside a model of it: any order of submissions, claims, deaths, late writes, cancellations and retries.

After every step the tables must say what `tests.chaos.store_model` says, and `tests.chaos.invariants` nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, event, select, update

from revln.access import OWNER
from revln.db import tables
from revln.db.engine import Database
from revln.db.jobs import sweep
from revln.db.jobs.changes import cancel_job, delete_job, retry_job
from revln.db.jobs.chunks import claim_chunk, end_chunk, finish_chunk, heartbeat, release_chunk
from revln.db.jobs.crashes import charge_crash
from revln.db.jobs.dead_letters import bury_chunk
from revln.errors import Conflict, LeaseLost, TimedOut
from revln.jobs.state import ChunkState, JobStatus
from tests.builders import make_job, ok_result
from tests.chaos.experiment import experiment
from tests.chaos.invariants import violations
from tests.chaos.lab import Lab
from tests.chaos.store_model import (
    MAX_CRASHES,
    Change,
    Held,
    ModelChunk,
    ModelJob,
    crashed,
    died,
    end_queued,
    finished,
    queued_again,
)

__all__ = ["StoreMachine"]

_LEASE_S = 1_000.0
_JOBS = 3  # of one example: few, so that much happens to each
_ERROR = {"code": "job_failed", "detail": "bad", "retryable": False}
# Some more often than others, because more can go wrong there.
_WAYS = [*["finish"] * 5, *["hand back", "fail", "hang"] * 2, "beat", "bury", "canceled", "expired"]
_FAILED = st.sampled_from([0, 1, 1, 2, 3])
# Neither is near the length of a lease, a delay or a deadline: what the test itself takes shall not matter.
_SHORT_S, _LONG_S = 300.0, 1_100.0


class StoreMachine(RuleBasedStateMachine):
    db: Database
    steps = 0
    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.known: list[ModelJob] = []
        _forget(self.db)

    # --- clients

    @initialize(target=jobs)
    def begin(self) -> Any:
        return multiple(self._submit([3], 3, None, None), self._submit([2, 1], 3, None, None))

    @precondition(lambda self: len(self.known) < _JOBS)
    @rule(
        target=jobs,
        sizes=st.lists(st.integers(1, 3), min_size=1, max_size=2),
        attempts=st.integers(1, 3),
        deadline_s=st.sampled_from([None, None, 500.0]),
        key=st.sampled_from([None, "a", "b"]),
    )
    def submit(self, sizes: list[int], attempts: int, deadline_s: float | None, key: str | None) -> ModelJob:
        return self._submit(sizes, attempts, deadline_s, key)

    @rule(job=jobs, what=st.sampled_from(["retry", "cancel", "delete"]), attempts=st.integers(1, 2))
    def ask(self, job: ModelJob, what: str, attempts: int) -> None:
        """Somebody wants something of a job, whether its state allows it or not."""
        if job.deleted:
            return
        match what:
            case "retry":
                self._retry(job, attempts)
            case "cancel":
                self._cancel(job)
            case "delete" if job.status.done:
                delete_job(self.db, job.id, OWNER)
                job.deleted = True
            case "delete":
                _refused(lambda: delete_job(self.db, job.id, OWNER))

    # --- workers

    @rule(target=claims, job=jobs, number=st.integers(0, 1))
    def deliver(self, job: ModelJob, number: int) -> Any:
        """A message for a chunk in whatever state: on time, once more, or long after."""
        return self._claim(job, number)

    @rule(target=claims, job=jobs, how=st.sampled_from(_WAYS), failed=_FAILED)
    def run(self, job: ModelJob, how: str, failed: int) -> Any:
        """What happens most of the time: a chunk is run; of a job that has ended, after a retry."""
        if not job.deleted and job.status.done:
            self._retry(job, 2)
        queued = [number for number, chunk in enumerate(job.chunks) if chunk.state is ChunkState.QUEUED]
        held = self._claim(job, queued[0]) if queued else multiple()
        if isinstance(held, Held):
            self._end(held, how, failed)
        return held

    @rule(target=claims, held=claims)
    def take_over(self, held: Held) -> Any:
        """Somebody is silent for longer than his lease, and another one runs what he had. He may come back."""
        self._go_on(_LONG_S)
        self._sweep()
        return self._claim(held.job, held.claim.number)

    @rule(held=claims, how=st.sampled_from(_WAYS), failed=_FAILED)
    def come_back(self, held: Held, how: str, failed: int) -> None:
        """Whoever holds a claim, or once did, does something by it. (Who is dead is one who does nothing more.)"""
        self._end(held, how, failed)

    def _end(self, held: Held, how: str, failed: int) -> None:
        claim, failed = held.claim, min(failed, held.claim.n_items)
        match how:
            case "beat":
                assert heartbeat(self.db, [claim], _LEASE_S) == [held.good]
                if held.good:
                    held.chunk.until = self.now + _LEASE_S
            case "finish":
                result = ok_result(claim, failed)
                self._write(held, lambda: finish_chunk(self.db, claim, lambda _: result), finished(failed))
            case "fail" if not held.good or held.chunk.attempt < held.chunk.max_attempts:
                again = queued_again(held.job, self.now + 1_000.0)
                self._write(held, lambda: release_chunk(self.db, claim, _ERROR, 1_000.0, counted=True), again)
            case "fail" | "bury":  # as `worker.endings` does: who has used up the attempts buries
                self._write(held, lambda: bury_chunk(self.db, claim, _ERROR), died)
            case "hand back":
                again = queued_again(held.job, self.now, uncounted=True)
                self._write(held, lambda: release_chunk(self.db, claim, None, 0.0, counted=False), again)
            case "hang":
                charge = crashed(held.job, self.now)
                self._write(held, lambda: charge_crash(self.db, claim, TimedOut(), MAX_CRASHES), charge)
            case "canceled" | "expired":
                end = ChunkState(how)
                self._write(held, lambda: end_chunk(self.db, claim, end), lambda chunk: setattr(chunk, "state", end))

    # --- time, and who puts things right

    @rule(seconds=st.sampled_from([_SHORT_S, _LONG_S]), swept=st.booleans())
    def go_on(self, seconds: float, swept: bool) -> None:
        self._go_on(seconds)
        if swept:
            self._sweep()

    # --- what must hold

    @invariant()
    def the_tables_say_the_same(self) -> None:
        type(self).steps += 1
        with self.db.read() as connection:
            columns = tables.chunks.c
            rows = connection.execute(
                select(columns.job_id, columns.number, columns.state, columns.attempt, columns.max_attempts,
                       columns.crash_count, columns.succeeded, columns.failed)
            ).all()  # fmt: skip
            status = dict(connection.execute(select(tables.jobs.c.id, tables.jobs.c.status)).all())
        living = [job for job in self.known if not job.deleted]
        assert status == {job.id: job.status for job in living}
        assert {tuple(row) for row in rows} == {
            (
                job.id,
                number,
                chunk.state,
                chunk.attempt,
                chunk.max_attempts,
                chunk.crashes,
                chunk.succeeded,
                chunk.failed,
            )
            for job in living
            for number, chunk in enumerate(job.chunks)
        }
        assert violations(self.db) == []

    # --- the model, and what it is told

    def _submit(self, sizes: list[int], attempts: int, deadline_s: float | None, key: str | None) -> ModelJob:
        body = f"{sizes} {attempts} {deadline_s}".encode().hex()[:64]
        mine = None if key is None else f"{key} {body}"
        # One length of chunk a job: the last may be shorter.
        job = make_job(
            self.db, sum(sizes), max(sizes), max_attempts=attempts, deadline_s=deadline_s, idempotency_key=mine,
            request_sha256=body,
        )  # fmt: skip
        for known in self.known:
            if known.id == job.id:
                assert mine is not None
                return known
        with self.db.read() as connection:
            columns = tables.chunks.c
            mine_only = select(columns.n_items).where(columns.job_id == job.id).order_by(columns.number)
            chunks = [ModelChunk(count, attempts, due=self.now) for count in connection.scalars(mine_only)]
        made = ModelJob(job.id, chunks, None if deadline_s is None else self.now + deadline_s)
        self.known.append(made)
        return made

    def _cancel(self, job: ModelJob) -> None:
        if job.status.done and job.status is not JobStatus.CANCELED:
            _refused(lambda: cancel_job(self.db, job.id, OWNER))
            return
        cancel_job(self.db, job.id, OWNER)
        if not job.status.done:
            job.canceled = True
            end_queued(job, ChunkState.CANCELED)

    def _retry(self, job: ModelJob, attempts: int) -> None:
        again = [chunk for chunk in job.chunks if chunk.state is not ChunkState.SUCCEEDED or chunk.failed]
        if not job.status.done or not again:
            _refused(lambda: retry_job(self.db, job.id, attempts, OWNER))
            return
        retry_job(self.db, job.id, attempts, OWNER)
        job.canceled, job.deadline = False, None
        for chunk in again:
            chunk.state, chunk.crashes, chunk.failed, chunk.due = ChunkState.QUEUED, 0, 0, self.now
            chunk.max_attempts = chunk.attempt + attempts

    def _claim(self, job: ModelJob, number: int) -> Any:
        claim = claim_chunk(self.db, job.id, number, "w", _LEASE_S)
        chunk = job.chunks[number] if number < len(job.chunks) and not job.deleted else None
        late = not job.started and job.deadline is not None and job.deadline < self.now
        free = chunk is not None and not late and chunk.state is ChunkState.QUEUED and chunk.due <= self.now
        if chunk is None or not free or chunk.attempt >= chunk.max_attempts:
            assert claim is None, "what is not there to be run was claimed"
            return multiple()
        assert claim is not None, "what is there to be run was not claimed"
        chunk.state, chunk.attempt, chunk.until = ChunkState.RUNNING, chunk.attempt + 1, self.now + _LEASE_S
        job.started = True
        assert claim.attempt == chunk.attempt
        return Held(job, claim)

    def _write(self, held: Held, write: Callable[[], Any], change: Change) -> None:
        """Somebody writes by a claim: it happens, or is refused and nothing does."""
        if held.good:
            write()
            change(held.chunk)
            return
        try:
            write()
        except LeaseLost:
            return
        raise AssertionError("a late write was not refused")

    def _go_on(self, seconds: float) -> None:
        """The database's clock jumps; its hands being out of reach, all that was written by it goes back."""
        self.now += seconds
        chunks, jobs = tables.chunks.c, tables.jobs.c
        with self.db.write() as connection:
            connection.execute(
                update(tables.chunks).values(lease_until=chunks.lease_until - seconds, run_at=chunks.run_at - seconds)
            )
            connection.execute(
                update(tables.jobs).values(deadline_at=jobs.deadline_at - seconds, created_at=jobs.created_at - seconds)
            )

    def _sweep(self) -> None:
        sweep.recover_lost_chunks(self.db, MAX_CRASHES)
        sweep.expire_deadlines(self.db)
        for job in self.known:
            if job.deleted:
                continue
            for chunk in job.chunks:
                if chunk.state is ChunkState.RUNNING and chunk.until < self.now:
                    crashed(job, self.now)(chunk)
            if job.deadline is not None and job.deadline < self.now:
                end_queued(job, ChunkState.EXPIRED)


def _forget(db: Database) -> None:
    with db.write() as connection:
        connection.execute(delete(tables.jobs))
        connection.execute(delete(tables.usage))


def _no_fsync(connection: Any, _: Any) -> None:
    """Nothing dies here, and a commit takes a tenth of the time."""
    lazy = "PRAGMA synchronous=OFF" if isinstance(connection, sqlite3.Connection) else "SET synchronous_commit = off"
    connection.execute(lazy)
    connection.commit()


def _refused(ask: Callable[[], Any]) -> None:
    try:
        ask()
    except Conflict:
        return
    raise AssertionError("what the job's state does not allow was done")


@experiment(18, "any order of what may happen to jobs", stack=False, short={"examples": 12, "steps": 40, "shrink": 0})
def any_order(lab: Lab, *, examples: int = 500, steps: int = 50, shrink: int = 1) -> None:
    """``shrink``: look for the shortest way to a fault, which takes minutes."""
    event.listen(lab.db.engine, "connect", _no_fsync)
    machine = seed(lab.random.randrange(2**32))(type("Machine", (StoreMachine,), {"db": lab.db}))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, database=None,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate, *[Phase.shrink] * shrink],
        ),
    )  # fmt: skip
    lab.figures |= {"examples": examples, "steps": machine.steps, "violations": 0}
    _forget(lab.db)
