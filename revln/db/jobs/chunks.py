"""Chunks: claim, heartbeat, finish, release, bury. Every change is one conditional UPDATE fenced by ``attempt``.

``attempt`` rises with every claim. Whoever was paused, lost its lease and wakes up again still holds the old number, so
its writes match no row: the result, the counters and the state of a chunk are written once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, select, true, update

from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.jobs.read import Job, lock_job
from revln.db.jobs.reports import write_report
from revln.db.jobs.results import write_result
from revln.db.jobs.settle import add_event, settle_job
from revln.db.jobs.submit import Inline, Range
from revln.errors import DeadlineExceeded, LeaseLost, NotFound
from revln.jobs.state import ChunkState

__all__ = [
    "ChunkResult",
    "Claim",
    "claim_chunk",
    "end_chunk",
    "finish_chunk",
    "heartbeat",
    "held_by",
    "hold_chunk",
    "is_chunk",
    "lock_for",
    "release_chunk",
    "set_back",
    "way_back",
]


@dataclass(frozen=True, slots=True)
class Claim:
    """A chunk that is ours until the lease ends, and what its job says about it."""

    job: Job
    number: int
    attempt: int
    max_attempts: int
    crash_count: int
    first_index: int
    n_items: int
    source: Inline | Range
    failed: int  # items whose errors, in ``previous``, are final
    previous: list[dict[str, Any]] | None  # what an earlier run left, if this is a retry
    previous_vectors: bytes | None
    deadline_in_s: float | None

    @property
    def key(self) -> tuple[str, int]:
        return self.job.id, self.number

    @property
    def standing(self) -> list[dict[str, Any]]:
        """What of an earlier run is final. Errors are, unless somebody asked for a retry: then none of them counts."""
        return [item for item in self.previous or () if item.get("error") is None or self.failed]


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What a chunk came to: one dict for each item, in order; those with an ``error`` have failed.

    ``open_ended``: a report of any length, of a job that has one chunk; the job's total becomes that length.
    """

    items: Sequence[dict[str, Any]]
    vectors: bytes | None = None
    open_ended: bool = False

    @property
    def failed(self) -> int:
        return sum(1 for item in self.items if item.get("error") is not None)

    @property
    def passing(self) -> list[dict[str, Any]]:
        """The errors of items that may be done if they are tried again."""
        return [item["error"] for item in self.items if (item.get("error") or {}).get("retryable")]


def is_chunk(job_id: str, number: int) -> Any:
    """The condition that picks one chunk."""
    return and_(tables.chunks.c.job_id == job_id, tables.chunks.c.number == number)


def held_by(job_id: str, number: int, attempt: int, state: ChunkState = ChunkState.RUNNING) -> Any:
    """The fence: the chunk is still in this state at this attempt."""
    columns = tables.chunks.c
    return and_(is_chunk(job_id, number), columns.attempt == attempt, columns.state == state)


def way_back(job: Job) -> ChunkState:
    """Where a chunk that did not end goes from a worker: into its queue, unless its job is to be canceled."""
    return ChunkState.CANCELED if job.cancel_requested_at is not None else ChunkState.QUEUED


def set_back(state: ChunkState, error: dict[str, Any] | None, delay_s: float) -> dict[str, Any]:
    """The columns of a chunk that goes there."""
    return {
        "state": state,
        "lease_until": None,
        "worker": None,
        "published_at": None,
        "run_at": db_now() + delay_s,
        "error": error,
        "finished_at": db_now() if state.done else None,
    }


def _held(claim: Claim) -> Any:
    return held_by(*claim.key, claim.attempt)


def claim_chunk(
    db: Database, job_id: str, number: int, worker: str, lease_s: float, *, rung_by: tuple[str, int] | None = None
) -> Claim | None:
    """Take a queued chunk, or None if it is not there to be taken.

    ``rung_by`` names the chunk whose message led here, if it is another one (`revln.db.jobs.turns`). One whose own
    message has yet to be sent uses that message up: the other one's has to be sent again.

    A message may come twice, or late: only one claim wins, and a chunk whose worker is dead is first set back by the
    sweeper, which is the one place that counts crashes.
    """
    columns = tables.chunks.c
    with db.write() as connection:
        try:
            job = lock_job(connection, job_id)
        except NotFound:
            return None
        late = job.started_at is None and job.deadline_at is not None  # to be started: the sweeper ends it
        row = connection.execute(
            update(tables.chunks)
            .where(
                is_chunk(job_id, number),
                db_now() <= job.deadline_at if late else true(),
                columns.state == ChunkState.QUEUED,
                columns.attempt < columns.max_attempts,
                columns.run_at <= db_now(),
            )
            .values(
                state=ChunkState.RUNNING,
                attempt=columns.attempt + 1,
                lease_until=db_now() + lease_s,
                worker=worker,
                started_at=db_now(),
            )
            .returning(
                columns["items"],
                columns.source_offset,
                columns.source_length,
                columns.started_at,
                columns.published_at,
                *(columns[name] for name in _CLAIMED),
            )
        ).one_or_none()
        if row is None:
            return None
        if row.published_at is None and rung_by is not None:
            connection.execute(
                update(tables.chunks)
                .where(is_chunk(*rung_by), columns.state == ChunkState.QUEUED)
                .values(published_at=None)
            )
        earlier = connection.execute(
            select(tables.results.c["items"], tables.results.c.vectors).where(
                tables.results.c.job_id == job_id, tables.results.c.number == number
            )
        ).one_or_none()
        job = settle_job(connection, job, job.tally.move(ChunkState.QUEUED, ChunkState.RUNNING))
        return Claim(
            job=job,
            number=number,
            previous=earlier[0] if earlier else None,
            previous_vectors=earlier[1] if earlier else None,
            deadline_in_s=job.deadline_at - row.started_at if job.deadline_at is not None else None,
            source=Range(row.source_offset, row.source_length) if row[0] is None else Inline(row[0]),
            **{name: row._mapping[name] for name in _CLAIMED},
        )


_CLAIMED = ("attempt", "max_attempts", "crash_count", "failed", "first_index", "n_items")


def heartbeat(db: Database, claims: Sequence[Claim], lease_s: float) -> list[bool]:
    """Renew leases, in one transaction; for each claim, whether it still holds."""
    with db.write() as connection:
        return [
            bool(
                connection.execute(
                    update(tables.chunks).where(_held(claim)).values(lease_until=db_now() + lease_s)
                ).rowcount
            )
            for claim in claims
        ]


def hold_chunk(connection: Connection, claim: Claim) -> None:
    """Make sure that the chunk stays ours until this transaction ends: for what is written before the last one.

    Raises LeaseLost.
    """
    columns = tables.chunks.c
    held = connection.execute(update(tables.chunks).where(_held(claim)).values(lease_until=columns.lease_until))
    if not held.rowcount:
        raise LeaseLost(f"Chunk {claim.number} of job {claim.job.id} is no longer ours at attempt {claim.attempt}.")


def finish_chunk(
    db: Database,
    claim: Claim,
    make_result: Callable[[Connection], ChunkResult],
    retry_in_s: float | None = None,
) -> Job:
    """Write state, result and counters in one transaction.

    ``make_result`` is called inside it, once the fence has held, so that a kind can add its own writes. With
    ``retry_in_s``, items whose errors may pass are run once more then; the rest of the result is kept.

    Raises:
        LeaseLost: the chunk is no longer ours; nothing was written.
    """
    with db.write() as connection:
        job = lock_for(connection, claim)
        end = {"state": ChunkState.SUCCEEDED, "lease_until": None, "finished_at": db_now()}
        before = _fence(connection, claim, end)
        result = make_result(connection)
        if result.passing and retry_in_s is not None:
            return _finish_in_part(connection, job, claim, before, result, retry_in_s)
        succeeded, failed = len(result.items) - result.failed, result.failed
        connection.execute(
            update(tables.chunks).where(is_chunk(*claim.key)).values(succeeded=succeeded, failed=failed, error=None)
        )
        tally = job.tally.move(ChunkState.RUNNING, ChunkState.SUCCEEDED)
        tally = tally.count(succeeded - before.succeeded, failed - before.failed)
        if result.open_ended:
            added = write_report(connection, claim.key, claim.attempt, result.items)
            return settle_job(connection, job, tally.add(ChunkState.SUCCEEDED, added), total=len(result.items))
        _write_result(connection, claim, result)
        return settle_job(connection, job, tally)


def _finish_in_part(
    connection: Connection, job: Job, claim: Claim, before: Any, result: ChunkResult, retry_in_s: float
) -> Job:
    """Keep what is final, and queue the chunk again for the rest."""
    errors = result.passing
    items = [item for item in result.items if not (item.get("error") or {}).get("retryable")]
    final = ChunkResult(items, result.vectors)
    _write_result(connection, claim, final)
    succeeded = len(items) - final.failed
    state = way_back(job)
    connection.execute(
        update(tables.chunks)
        .where(is_chunk(*claim.key))
        .values(**set_back(state, errors[0], retry_in_s), succeeded=succeeded, failed=final.failed)
    )
    _tell_retry(connection, claim, errors[0], retry_in_s, items=len(errors))
    tally = job.tally.move(ChunkState.RUNNING, state)
    return settle_job(connection, job, tally.count(succeeded - before.succeeded, final.failed - before.failed))


def _tell_retry(connection: Connection, claim: Claim, error: dict[str, Any], delay_s: float, **more: Any) -> None:
    data = {"chunk": claim.number, "attempt": claim.attempt, "retry_in_s": round(delay_s, 1), "error": error, **more}
    add_event(connection, claim.job.id, "chunk.retried", data)


def release_chunk(db: Database, claim: Claim, error: dict[str, Any] | None, delay_s: float, *, counted: bool) -> Job:
    """Give a running chunk back to the queue, to be run again after ``delay_s``.

    ``counted=False`` hands back an attempt that was not the chunk's fault (a worker that shuts down). A job whose
    cancellation was asked for gets its chunk canceled instead.
    """
    with db.write() as connection:
        job = lock_for(connection, claim)
        state = way_back(job)
        columns = tables.chunks.c
        _fence(
            connection,
            claim,
            {
                **set_back(state, error, delay_s),
                "max_attempts": columns.max_attempts if counted else columns.max_attempts + 1,
            },
        )
        if error is not None:
            _tell_retry(connection, claim, error, delay_s)
        return settle_job(connection, job, job.tally.move(ChunkState.RUNNING, state))


def end_chunk(db: Database, claim: Claim, end: ChunkState) -> Job:
    """Cancel or expire a running chunk. What an earlier run of it did stays readable."""
    assert end in (ChunkState.CANCELED, ChunkState.EXPIRED)
    with db.write() as connection:
        job = lock_for(connection, claim)
        _fence(connection, claim, {"state": end, "lease_until": None, "finished_at": db_now()})
        tally = job.tally.move(ChunkState.RUNNING, end)
        error = {"error": DeadlineExceeded().as_dict()} if end is ChunkState.EXPIRED else {}
        return settle_job(connection, job, tally, **error)


def lock_for(connection: Connection, claim: Claim) -> Job:
    """The claim's job, locked. Raises LeaseLost if it was deleted."""
    try:
        return lock_job(connection, claim.job.id)
    except NotFound as err:
        raise LeaseLost(f"Job {claim.job.id} was deleted while chunk {claim.number} ran.") from err


def _fence(connection: Connection, claim: Claim, values: dict[str, Any]) -> Any:
    """Change a chunk that we hold; how many of its items had ``succeeded`` and ``failed`` before. Raises LeaseLost."""
    columns = tables.chunks.c
    row = connection.execute(
        update(tables.chunks).where(_held(claim)).values(**values).returning(columns.succeeded, columns.failed)
    ).one_or_none()
    if row is None:
        raise LeaseLost(
            f"Chunk {claim.number} of job {claim.job.id} is no longer ours at attempt {claim.attempt}; result dropped."
        )
    return row


def _write_result(connection: Connection, claim: Claim, result: ChunkResult) -> None:
    span = claim.first_index, claim.n_items
    write_result(connection, claim.key, claim.attempt, span, result.items, result.vectors)
