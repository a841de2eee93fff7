"""Run one chunk: claim, hand to its kind's handler, write what came out. Every change of state is made from here."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy import Connection

from revln.broker import task_id
from revln.db.jobs.chunks import ChunkResult, Claim, claim_chunk, finish_chunk
from revln.db.jobs.results import vectors_by_index, vectors_to_bytes
from revln.db.jobs.turns import Turn
from revln.errors import JobError, LeaseLost
from revln.jobs.kinds import KINDS
from revln.jobs.schemas import Parameters
from worker.context import Again, Context, Done, Outcome
from worker.endings import end_with, persist, retry_items_in_s
from worker.handlers.registry import HANDLERS
from worker.leases import Lease
from worker.runtime import Runtime
from worker.turns import runs_long

__all__ = ["execute"]

log = logging.getLogger(__name__)

_TRIES = 5  # to claim what is due before somebody else does
_MOST_RUNS = 1_000


def execute(runtime: Runtime, job_id: str, number: int) -> str:
    """Run the chunk whose turn it is in the queue of this one. Never raises for what a chunk does: that is in its row.

    Returns:
        Which chunk that was, to be shown.

    Raises:
        Unavailable: the database does not answer; the sweeper will find the chunk again.
    """
    for _ in range(_TRIES):
        if ran := _execute(runtime, (job_id, number)):
            return ran
    return "nothing: other workers were first"


def _execute(runtime: Runtime, rung_by: tuple[str, int]) -> str:
    """Return what ran; empty if another worker claimed the chunk first."""
    with runtime.turns.next(rung_by) as turn:
        if turn is None:
            log.info("nothing waits in the queue of chunk %s.%d", *rung_by)
            return "nothing: its queue is empty"
        # Before the claim: a lease must not run out in line.
        with _place(runtime, turn):
            other = rung_by if rung_by != turn.address else None
            claim = claim_chunk(runtime.db, *turn.address, runtime.worker_id, runtime.settings.lease_s, rung_by=other)
            runtime.turns.claimed(turn)
            if claim is None:
                return ""
            if claim.job.chunks_running == 1:
                _call_out(runtime, claim)
            if _run_claimed(runtime, claim):
                _call_out(runtime, claim, ended=True)
            return f"ran {task_id(*turn.address)}"


def _call_out(runtime: Runtime, claim: Claim, *, ended: bool = False) -> None:
    """Tell those who wait for the job that it changed, and workers that its collection did."""
    job = claim.job
    changes = ended and KINDS[job.kind].operation(job.input).changes_collection
    changed = (job.tenant, job.collection) if changes and job.collection else None
    runtime.dispatcher.announce(job.id, changed)
    if claim.job.webhook is not None:
        runtime.webhooks.wake()


def _run_claimed(runtime: Runtime, claim: Claim) -> bool:
    """Whether it stayed ours to the end."""
    started = time.monotonic()
    timeout_s = KINDS[claim.job.kind].operation(claim.job.input).timeout_s
    name = "chunk {}.{}".format(*claim.key)
    with runtime.leases.hold(claim, timeout_s) as lease, runtime.watchdog.chunk(name, lease):
        try:
            ended = _run(runtime, lease)
        except LeaseLost as err:
            log.warning("chunk %s.%d: %s", *claim.key, err)
            return False
    log.info("chunk %s.%d %s in %.2f s", *claim.key, ended, time.monotonic() - started)
    return True


def _place(runtime: Runtime, turn: Turn) -> AbstractContextManager[None]:
    """Beside other chunks; or alone, if it may be what killed a worker."""
    if runs_long(turn):
        # A suspect must not wait for hours to be alone. A build cannot kill a worker: it has a process of its own.
        return nullcontext()
    return runtime.isolation.alone() if turn.crash_count else runtime.isolation.shared()


def _run(runtime: Runtime, lease: Lease) -> str:
    try:
        context = Context[Parameters](runtime, lease)
        if context.split():
            return "cut into single items"
        with runtime.models.held(waiting=lease.keep_waiting):
            _finish(context)
    except Exception as err:  # noqa: BLE001 - a chunk ends here; the error goes to its row
        return end_with(runtime, lease, err)
    return "finished"


def _finish(context: Context[Any]) -> None:
    lease = context.lease
    for _ in range(_MOST_RUNS):
        done = HANDLERS[context.operation.name](context)
        lease.check()
        try:
            persist(lease, partial(_write, context, done))
        except Again:
            lease.progress()
        else:
            return
    raise JobError("The collection changes faster than the job can follow it; run it again at a quieter time.")


def _write(context: Context[Any], done: Done) -> None:
    claim = context.claim

    def result(connection: Connection) -> ChunkResult:
        outcomes = done.apply(connection, done.outcomes) if done.apply else done.outcomes
        if context.operation.open_ended:
            return ChunkResult([outcome.as_dict() for outcome in outcomes], open_ended=True)
        return _merged(claim, outcomes)

    finish_chunk(context.runtime.db, claim, result, retry_items_in_s(claim))


def _merged(claim: Claim, outcomes: Sequence[Outcome]) -> ChunkResult:
    """This run's outcomes with what an earlier run had done already, in the items' order."""
    items = {outcome.index: outcome.as_dict() for outcome in outcomes}
    vectors: dict[int, Any] = {outcome.index: outcome.vector for outcome in outcomes if outcome.vector is not None}
    items = {item["index"]: item for item in claim.previous or ()} | items
    vectors = vectors_by_index(claim.previous or (), claim.previous_vectors) | vectors
    ordered = [items[index] for index in sorted(items)]
    rows = [vectors[index] for index in sorted(vectors)]
    return ChunkResult(ordered, vectors_to_bytes(np.stack(rows)) if rows else None)
