"""How a chunk ends that could not be finished: canceled, expired, dead, or tried again."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any

from revln.db.jobs.chunks import Claim, end_chunk, release_chunk
from revln.db.jobs.crashes import charge_crash
from revln.db.jobs.dead_letters import bury_chunk
from revln.errors import (
    DeadlineExceeded,
    ItemError,
    JobCanceled,
    JobError,
    LeaseLost,
    RevlnError,
    TimedOut,
    Unavailable,
    UsersError,
)
from revln.jobs.kinds import KINDS
from revln.jobs.state import ChunkState
from revln.models.memory import out_of_memory
from worker.leases import Lease
from worker.runtime import Runtime

__all__ = ["end_with", "persist", "retry_items_in_s"]

log = logging.getLogger(__name__)

_BACKOFF_S = 1.0  # doubles with each attempt, with full jitter, up to the next line
_BACKOFF_MAX_S = 60.0
_ITEM_TRIES = 3  # somebody waits for its neighbours
_OUTAGE_S = 5.0  # a database that was away: jitter alone, so that not all come back at once
_REWRITE_S = 0.5


def end_with(runtime: Runtime, lease: Lease, err: Exception) -> str:
    """Write to the chunk's row what becomes of it after this error; in words. Raises LeaseLost."""
    said, write = _ending(runtime, lease.claim, err)
    persist(lease, write)
    return said


def persist(lease: Lease, write: Callable[[], Any], again_s: float = _REWRITE_S) -> None:
    """Write; while the database is away keep what was computed and try again, for as long as the lease may be ours.

    Who gave up would have it computed again for want of one minute; the fence keeps a late write harmless.

    Raises:
        LeaseLost: it is not ours any more.
    """
    while True:
        try:
            write()
            return
        except Unavailable as err:
            if lease.lost:
                raise LeaseLost from err
            if not err.database:
                raise
            log.warning("chunk %s.%d is kept until the database is back: %s", *lease.claim.key, err)
        lease.progress()
        time.sleep(again_s)


def _ending(runtime: Runtime, claim: Claim, err: Exception) -> tuple[str, Callable[[], Any]]:
    db = runtime.db
    match err:
        case LeaseLost():
            raise err
        case JobCanceled():
            return "canceled", lambda: end_chunk(db, claim, ChunkState.CANCELED)
        case DeadlineExceeded():
            return "expired", lambda: end_chunk(db, claim, ChunkState.EXPIRED)
        case TimedOut():
            # Of its own time: whatever it waited for hangs, most likely. Alone it shows whether the fault is its own.
            return "timed out", lambda: charge_crash(db, claim, err, runtime.settings.max_crashes)
        # An ItemError here is of the whole manifest: it is gone.
        case JobError() | UsersError() | ItemError() if not err.retryable:
            return f"failed ({err.code})", lambda: bury_chunk(db, claim, err.as_dict())
    return _try_again(runtime, claim, err)


def _try_again(runtime: Runtime, claim: Claim, err: Exception) -> tuple[str, Callable[[], Any]]:
    """Back to the queue with back-off and full jitter, or dead when the attempts are used up."""
    db, failures = runtime.db, _failures(claim)
    log.warning("chunk %s.%d failed at attempt %d", *claim.key, claim.attempt, exc_info=err)
    # What an error of a library says may hold SQL, paths or payloads: the log has it, the client gets its name.
    error = _known(err).as_dict()
    outage = isinstance(err, Unavailable) and err.database
    if claim.attempt >= claim.max_attempts and not outage:
        return f"dead after {failures} attempts", lambda: bury_chunk(db, claim, error)
    delay_s = random.uniform(0, _OUTAGE_S) if outage else _backoff_s(failures)  # noqa: S311 - jitter
    said = f"to be tried again in {delay_s:.1f} s"
    return said, lambda: release_chunk(db, claim, error, delay_s, counted=not outage)


def retry_items_in_s(claim: Claim) -> float | None:
    """When items whose errors may pass (a URL that was not to be had, no memory) are run again; None: not any more."""
    failures = _failures(claim)
    return None if failures >= _ITEM_TRIES or claim.attempt >= claim.max_attempts else _backoff_s(failures)


def _known(err: Exception) -> RevlnError:
    if isinstance(err, RevlnError):
        return err
    if out_of_memory(err):
        return Unavailable("The worker ran out of memory.")
    return RevlnError(f"Something went wrong inside revln: {type(err).__name__}.")


def _backoff_s(failures: int) -> float:
    return random.uniform(0, min(_BACKOFF_MAX_S, _BACKOFF_S * 2**failures))  # noqa: S311 - full jitter


def _failures(claim: Claim) -> int:
    """How many attempts counted, this one included: crashes, hand-backs and outages raised both numbers."""
    return max(1, claim.attempt - claim.max_attempts + KINDS[claim.job.kind].max_attempts)
