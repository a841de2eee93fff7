"""Chunks: claim, heartbeat, finish, release, bury. Every change is one conditional UPDATE fenced by ``attempt``.

``attempt`` rises with every claim. Whoever was paused, lost its lease and wakes up again still holds the old number, so
its writes match no row: the result, the counters and the state of a chunk are written once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, select, update

from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.job_changes import settle_job
from revln.db.jobs import Job, lock_job
from revln.db.result_rows import write_report, write_result
from revln.errors import DeadlineExceeded, LeaseLost, NotFound
from revln.jobs.state import ChunkState

__all__ = [
    "ChunkResult",
    "Claim",
    "bury_chunk",
    "bury_locked",
    "claim_chunk",
    "end_chunk",
    "finish_chunk",
    "heartbeat",
    "hold_chunk",
    "lock_for",
    "release_chunk",
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
    items: list[Any] | None
    source_offset: int | None
    source_length: int | None
    previous: list[dict[str, Any]] | None  # the results of an earlier run, if this is a retry of what failed
    previous_vectors: bytes | None
    deadline_in_s: float | None

    @property
    def key(self) -> tuple[str, int]:
        return self.job.id, self.number


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


def _is(job_id: str, number: int) -> Any:
    return and_(tables.chunks.c.job_id == job_id, tables.chunks.c.number == number)


def _held(claim: Claim) -> Any:
    columns = tables.chunks.c
    return and_(_is(claim.job.id, claim.number), columns.attempt == claim.attempt, columns.state == ChunkState.RUNNING)


def claim_chunk(
    db: Database, job_id: str, number: int, worker: str, lease_s: float, *, rung_by: tuple[str, int] | None = None
) -> Claim | None:
    """Take a queued chunk, or None if it is not there to be taken.

    ``rung_by`` names the chunk whose message led here, if it is another one (`revln.db.turns`). One whose own message
    has yet to be sent uses that message up: the other one's has to be sent again.

    A message may come twice, or late: only one claim wins, and a chunk whose worker is dead is first set back by the
    sweeper, which is the one place that counts crashes.
    """
    columns = tables.chunks.c
    with db.write() as connection:
        try:
            job = lock_job(connection, job_id)
        except NotFound:
            return None
        row = connection.execute(
            update(tables.chunks)
            .where(
                _is(job_id, number),
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
            .returning(*(columns[name] for name in _CLAIMED), columns.started_at, columns.published_at)
        ).one_or_none()
        if row is None:
            return None
        values = dict(row._mapping)
        now = values.pop("started_at")
        if values.pop("published_at") is None and rung_by is not None:
            connection.execute(
                update(tables.chunks).where(_is(*rung_by), columns.state == ChunkState.QUEUED).values(published_at=None)
            )
        earlier = connection.execute(
            select(tables.results.c["items"], tables.results.c.vectors).where(
                tables.results.c.job_id == job_id, tables.results.c.number == number
            )
        ).one_or_none()
        job = settle_job(
            connection, job, {"chunks_queued": job.chunks_queued - 1, "chunks_running": job.chunks_running + 1}
        )
        return Claim(
            job=job,
            number=number,
            previous=earlier[0] if earlier else None,
            previous_vectors=earlier[1] if earlier else None,
            deadline_in_s=job.deadline_at - now if job.deadline_at is not None else None,
            **values,
        )


_CLAIMED = (
    "attempt",
    "max_attempts",
    "crash_count",
    "first_index",
    "n_items",
    "items",
    "source_offset",
    "source_length",
)


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
) -> Job:
    """Write state, result and counters in one transaction.

    ``make_result`` is called inside it, once the fence has held, so that a kind can add its own writes.

    Raises:
        LeaseLost: the chunk is no longer ours; nothing was written.
    """
    with db.write() as connection:
        job = lock_for(connection, claim)
        end = {"state": ChunkState.SUCCEEDED, "lease_until": None, "finished_at": db_now()}
        before = _fence(connection, claim, end)
        result = make_result(connection)
        succeeded, failed = len(result.items) - result.failed, result.failed
        connection.execute(
            update(tables.chunks)
            .where(_is(claim.job.id, claim.number))
            .values(succeeded=succeeded, failed=failed, error=None)
        )
        changes = {
            "chunks_running": job.chunks_running - 1,
            "chunks_succeeded": job.chunks_succeeded + 1,
            "succeeded": job.succeeded + succeeded - before,
            "failed": job.failed + failed,
        }
        if result.open_ended:
            changes["chunks_succeeded"] += write_report(connection, claim.key, claim.attempt, result.items)
            changes["total"] = len(result.items)
        else:
            _write_result(connection, claim, result)
        return settle_job(connection, job, changes)


def release_chunk(db: Database, claim: Claim, error: dict[str, Any] | None, delay_s: float, *, counted: bool) -> Job:
    """Give a running chunk back to the queue, to be run again after ``delay_s``.

    ``counted=False`` hands back an attempt that was not the chunk's fault (a worker that shuts down). A job whose
    cancellation was asked for gets its chunk canceled instead.
    """
    with db.write() as connection:
        job = lock_for(connection, claim)
        state = ChunkState.CANCELED if job.cancel_requested_at is not None else ChunkState.QUEUED
        columns = tables.chunks.c
        _fence(
            connection,
            claim,
            {
                "state": state,
                "lease_until": None,
                "worker": None,
                "published_at": None,
                "run_at": db_now() + delay_s,
                "error": error,
                "max_attempts": columns.max_attempts if counted else columns.max_attempts + 1,
                "finished_at": db_now() if state.done else None,
            },
        )
        return settle_job(connection, job, _moved(job, state))


def end_chunk(db: Database, claim: Claim, end: ChunkState, result: ChunkResult | None = None) -> Job:
    """Cancel or expire a running chunk; what it had done stays readable."""
    assert end in (ChunkState.CANCELED, ChunkState.EXPIRED)
    with db.write() as connection:
        job = lock_for(connection, claim)
        before = _fence(connection, claim, {"state": end, "lease_until": None, "finished_at": db_now()})
        changes = _moved(job, end)
        if end is ChunkState.EXPIRED:
            changes["error"] = DeadlineExceeded().as_dict()
        if result is not None:
            done = [item for item in result.items if item.get("error") is None]
            _write_result(connection, claim, result)
            connection.execute(update(tables.chunks).where(_is(claim.job.id, claim.number)).values(succeeded=len(done)))
            changes["succeeded"] = job.succeeded + len(done) - before
        return settle_job(connection, job, changes)


def bury_chunk(db: Database, claim: Claim, error: dict[str, Any]) -> Job:
    """Give a running chunk up for good: a dead letter. Every item of it that was not done carries the error."""
    with db.write() as connection:
        job = lock_for(connection, claim)
        return bury_locked(connection, job, claim.number, claim.attempt, ChunkState.RUNNING, error)


def bury_locked(
    connection: Connection, job: Job, number: int, attempt: int, was: ChunkState, error: dict[str, Any]
) -> Job:
    """The same for whoever already holds the job's row (the sweeper); fenced by ``attempt`` and the state it was in."""
    columns = tables.chunks.c
    row = connection.execute(
        update(tables.chunks)
        .where(
            _is(job.id, number),
            columns.attempt == attempt,
            columns.state == was,
        )
        .values(
            state=ChunkState.DEAD,
            lease_until=None,
            error=error,
            failed=columns.n_items - columns.succeeded,
            finished_at=db_now(),
        )
        .returning(
            columns["items"],
            columns.first_index,
            columns.n_items,
            columns.succeeded,
            columns.failed,
            columns.started_at,
        )
    ).one_or_none()
    if row is None:
        raise LeaseLost(f"Chunk {number} of job {job.id} is no longer at attempt {attempt}.")
    _write_errors(connection, job.id, number, attempt, row, error)
    return settle_job(
        connection,
        job,
        {
            f"chunks_{was}": getattr(job, f"chunks_{was}") - 1,
            "chunks_dead": job.chunks_dead + 1,
            "failed": job.failed + row.failed,
            "error": error,
        },
    )


def _write_errors(
    connection: Connection, job_id: str, number: int, attempt: int, row: Any, error: dict[str, Any]
) -> None:
    where = and_(tables.results.c.job_id == job_id, tables.results.c.number == number)
    kept = connection.execute(select(tables.results.c["items"], tables.results.c.vectors).where(where)).one_or_none()
    given = row._mapping["items"] or [None] * row.n_items
    fresh = [
        {"index": row.first_index + offset, "id": item.get("id") if isinstance(item, dict) else None, "error": error}
        for offset, item in enumerate(given)
    ]
    if kept:
        fresh = [old if old.get("error") is None else new for old, new in zip(kept[0], fresh, strict=True)]
    write_result(
        connection, (job_id, number), attempt, (row.first_index, row.n_items), fresh, kept[1] if kept else None
    )


def lock_for(connection: Connection, claim: Claim) -> Job:
    """The claim's job, locked. Raises LeaseLost if it was deleted."""
    try:
        return lock_job(connection, claim.job.id)
    except NotFound as err:
        raise LeaseLost(f"Job {claim.job.id} was deleted while chunk {claim.number} ran.") from err


def _fence(connection: Connection, claim: Claim, values: dict[str, Any]) -> int:
    """Change a chunk that we hold; how many of its items had succeeded before. Raises LeaseLost."""
    row = connection.execute(
        update(tables.chunks).where(_held(claim)).values(**values).returning(tables.chunks.c.succeeded)
    ).one_or_none()
    if row is None:
        raise LeaseLost(
            f"Chunk {claim.number} of job {claim.job.id} is no longer ours at attempt {claim.attempt}; result dropped."
        )
    return int(row[0])


def _moved(job: Job, state: ChunkState) -> dict[str, Any]:
    name = f"chunks_{state}"
    return {"chunks_running": job.chunks_running - 1, name: getattr(job, name) + 1}


def _write_result(connection: Connection, claim: Claim, result: ChunkResult) -> None:
    span = claim.first_index, claim.n_items
    write_result(connection, claim.key, claim.attempt, span, result.items, result.vectors)
