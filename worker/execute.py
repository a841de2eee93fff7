"""Run one chunk: claim, hand to its kind's handler, write what came out. Every change of state is made from here."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from sqlalchemy import Connection

from revln.db.chunks import (
    ChunkResult,
    Claim,
    bury_chunk,
    claim_chunk,
    end_chunk,
    finish_chunk,
    outlook,
    release_chunk,
)
from revln.db.results import vectors_from_bytes, vectors_to_bytes
from revln.errors import (
    DeadlineExceeded,
    ItemError,
    JobCanceled,
    JobError,
    LeaseLost,
    NotFound,
    RevlnError,
    Unavailable,
)
from revln.jobs.kinds import KINDS
from revln.jobs.state import ChunkState
from worker.context import Context, Done, Outcome
from worker.handlers import HANDLERS
from worker.leases import Lease
from worker.runtime import Runtime

__all__ = ["execute"]

log = logging.getLogger(__name__)

_BACKOFF_S = 1.0  # doubles with each attempt, with full jitter, up to the next line
_BACKOFF_MAX_S = 60.0


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
            runtime.dispatcher.announce(job_id)
        started = time.monotonic()
        timeout_s = KINDS[claim.job.kind].chunk_timeout_s(claim.job.input)
        with runtime.leases.hold(claim, timeout_s) as lease:
            try:
                ended = _run(runtime, lease)
            except LeaseLost as err:
                log.warning("chunk %s.%d: %s", job_id, number, err)
                return
        log.info("chunk %s.%d %s in %.2f s", job_id, number, ended, time.monotonic() - started)
    runtime.dispatcher.announce(job_id)


def _place(runtime: Runtime, crashes: int, kind: str, parameters: dict[str, Any]) -> AbstractContextManager[None]:
    """Beside other chunks; or alone, if it may be what killed a worker."""
    if kind and KINDS[kind].runs_long(parameters):
        # A suspect must not wait for hours to be alone. A build cannot kill a worker: it has a process of its own.
        return nullcontext()
    return runtime.isolation.alone() if crashes else runtime.isolation.shared()


def _run(runtime: Runtime, lease: Lease) -> str:
    claim = lease.claim
    try:
        context = Context(runtime, lease)
        with runtime.models.held(waiting=lease.keep_waiting):
            done = HANDLERS[claim.job.kind](context)
        lease.check()
        _persist(runtime, lambda: finish_chunk(runtime.db, claim, lambda connection: _result(connection, claim, done)))
    except LeaseLost:
        raise
    except JobCanceled:
        end_chunk(runtime.db, claim, ChunkState.CANCELED)
        return "canceled"
    except DeadlineExceeded:
        end_chunk(runtime.db, claim, ChunkState.EXPIRED)
        return "expired"
    except (JobError, NotFound, ItemError) as err:  # an ItemError here is of the whole manifest: it is gone
        bury_chunk(runtime.db, claim, err.as_dict())
        return f"failed ({err.code}: {err.message})"
    except Exception as err:  # noqa: BLE001 - a chunk ends here; the error goes to its row
        return _try_again(runtime, claim, err)
    return "finished"


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


def _try_again(runtime: Runtime, claim: Claim, err: Exception) -> str:
    """Back to the queue with back-off and full jitter, or dead when the attempts are used up."""
    log.warning("chunk %s.%d failed at attempt %d", *claim.key, claim.attempt, exc_info=err)
    # What an error of a library says may hold SQL, paths or payloads: the log has it, the client gets its name.
    known = (
        err if isinstance(err, RevlnError) else RevlnError(f"Something went wrong inside revln: {type(err).__name__}.")
    )
    error = known.as_dict()
    if claim.attempt >= claim.max_attempts:
        _persist(runtime, lambda: bury_chunk(runtime.db, claim, error))
        return f"dead after {claim.attempt} attempts"
    delay_s = random.uniform(0, min(_BACKOFF_MAX_S, _BACKOFF_S * 2**claim.attempt))  # noqa: S311 - jitter
    _persist(runtime, lambda: release_chunk(runtime.db, claim, error, delay_s, counted=True))
    return f"to be tried again in {delay_s:.1f} s"


def _persist(runtime: Runtime, write: Callable[[], Any]) -> None:
    """Write, and while the database is away keep trying as long as the lease may still be ours.

    What was computed would else be computed again for want of one second; the fence keeps a late write harmless.
    """
    give_up_at = time.monotonic() + runtime.settings.lease_s
    while True:
        try:
            write()
            return
        except Unavailable:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.5)
