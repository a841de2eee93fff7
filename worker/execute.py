"""Run one chunk: claim, hand to its kind's handler, write what came out. Every change of state is made from here."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from sqlalchemy import Connection

from revln.db.chunks import ChunkResult, Claim, claim_chunk, finish_chunk, outlook
from revln.db.results import vectors_from_bytes, vectors_to_bytes
from revln.errors import JobError, LeaseLost
from revln.jobs.kinds import KINDS
from worker.context import Again, Context, Done, Outcome
from worker.endings import end_with, persist
from worker.handlers import HANDLERS
from worker.leases import Lease
from worker.runtime import Runtime

__all__ = ["execute"]

log = logging.getLogger(__name__)

_MOST_RUNS = 1_000


def execute(runtime: Runtime, job_id: str, number: int) -> None:
    """Run a chunk, if it is there to be run. Never raises for what the chunk does: that is written to its row.

    Raises:
        Unavailable: the database does not answer; the sweeper will find the chunk again.
    """
    with runtime.db.read() as connection:
        crashes, kind, parameters = outlook(connection, job_id, number) or (0, "", {})
    # Before the claim: a lease must not run out in line.
    with _place(runtime, crashes, kind, parameters):
        claim = claim_chunk(runtime.db, job_id, number, runtime.worker_id, runtime.settings.lease_s)
        if claim is None:
            log.info("chunk %s.%d is not there to be run", job_id, number)
            return
        if claim.job.chunks_running == 1:
            _call_out(runtime, claim)
        started = time.monotonic()
        timeout_s = KINDS[claim.job.kind].chunk_timeout_s(claim.job.input)
        with runtime.leases.hold(claim, timeout_s) as lease, runtime.watchdog.chunk(f"chunk {job_id}.{number}", lease):
            try:
                ended = _run(runtime, lease)
            except LeaseLost as err:
                log.warning("chunk %s.%d: %s", job_id, number, err)
                return
        log.info("chunk %s.%d %s in %.2f s", job_id, number, ended, time.monotonic() - started)
    _call_out(runtime, claim, ended=True)


def _call_out(runtime: Runtime, claim: Claim, *, ended: bool = False) -> None:
    """Tell those who wait for the job that it changed, and workers that its collection did."""
    job = claim.job
    changed = (job.tenant, job.collection) if ended and job.kind == "index" and job.collection else None
    runtime.dispatcher.announce(job.id, changed)
    if claim.job.webhook is not None:
        runtime.webhooks.nudge()


def _place(runtime: Runtime, crashes: int, kind: str, parameters: dict[str, Any]) -> AbstractContextManager[None]:
    """Beside other chunks; or alone, if it may be what killed a worker."""
    if kind and KINDS[kind].runs_long(parameters):
        # A suspect must not wait for hours to be alone. A build cannot kill a worker: it has a process of its own.
        return nullcontext()
    return runtime.isolation.alone() if crashes else runtime.isolation.shared()


def _run(runtime: Runtime, lease: Lease) -> str:
    try:
        context = Context(runtime, lease)
        with runtime.models.held(waiting=lease.keep_waiting):
            _finish(runtime, lease, context)
    except Exception as err:  # noqa: BLE001 - a chunk ends here; the error goes to its row
        return end_with(runtime, lease, err)
    return "finished"


def _finish(runtime: Runtime, lease: Lease, context: Context) -> None:
    claim = lease.claim
    for _ in range(_MOST_RUNS):
        done = HANDLERS[claim.job.kind](context)
        lease.check()
        try:
            persist(lease, lambda: finish_chunk(runtime.db, claim, lambda connection: _result(connection, claim, done)))  # noqa: B023
        except Again:
            lease.progress()
        else:
            return
    raise JobError("The collection changes faster than the job can follow it; run it again at a quieter time.")


def _result(connection: Connection, claim: Claim, done: Done) -> ChunkResult:
    outcomes = done.apply(connection, done.outcomes) if done.apply else done.outcomes
    if done.open_ended:
        return ChunkResult([outcome.as_dict() for outcome in outcomes], open_ended=True)
    return _merged(claim, outcomes)


def _merged(claim: Claim, outcomes: Sequence[Outcome]) -> ChunkResult:
    """This run's outcomes with what an earlier run had done already, in the items' order."""
    items = {outcome.index: outcome.as_dict() for outcome in outcomes}
    vectors: dict[int, Any] = {outcome.index: outcome.vector for outcome in outcomes if outcome.vector is not None}
    kept = [item for item in claim.previous or () if item.get("error") is None and item["index"] not in items]
    items.update({item["index"]: item for item in kept})
    if claim.previous_vectors is not None:
        succeeded = [item["index"] for item in claim.previous or () if item.get("error") is None]
        old = vectors_from_bytes(claim.previous_vectors, len(succeeded)) if succeeded else ()
        vectors.update({index: row for index, row in zip(succeeded, old, strict=True) if index not in vectors})
    ordered = [items[index] for index in sorted(items)]
    rows = [vectors[index] for index in sorted(vectors)]
    return ChunkResult(ordered, vectors_to_bytes(np.stack(rows)) if rows else None)
