"""Jobs as they come in: the row, its chunks and its first event, in one transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from revln.access import Caller
from revln.db import bulk, tables
from revln.db.access.audit import record
from revln.db.engine import Database, db_now
from revln.db.jobs.read import JOB_COLUMNS, Job, earliest, get_job
from revln.db.jobs.settle import add_event
from revln.db.jobs.turns import last_turn
from revln.db.jobs.usage import NO_QUOTAS, Quotas, Usage, charge, check_quotas, check_total, lock_tenant
from revln.db.rows import row_to
from revln.db.uploads.uploads import hold_uploads
from revln.errors import IdempotencyMismatch, NotFound
from revln.jobs.state import ChunkState, JobStatus

__all__ = ["Inline", "NewChunk", "NewJob", "Range", "find_by_key", "source_columns", "submit_job"]

_INSERT_BATCH = 1_000
_CHUNK_COLUMNS = (
    "job_id", "number", "state", "queue", "tenant", "turn", "max_attempts", "run_at",
    "first_index", "n_items", "items", "source_offset", "source_length",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Inline:
    """Items that came in the body."""

    items: list[Any]


@dataclass(frozen=True, slots=True)
class Range:
    """Lines of the job's manifest, by where their bytes are."""

    offset: int
    length: int


def source_columns(source: Inline | Range) -> dict[str, Any]:
    """Return the columns of a chunk that say where its items are."""
    if isinstance(source, Inline):
        return {"items": source.items, "source_offset": None, "source_length": None}
    return {"items": None, "source_offset": source.offset, "source_length": source.length}


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A slice of a job's items."""

    first_index: int
    n_items: int
    source: Inline | Range


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a submission has been validated into."""

    id: str
    by: Caller  # whose it becomes
    kind: str
    priority: str
    queue: str
    max_attempts: int
    input: dict[str, Any]
    total: int
    chunks: Iterable[NewChunk]
    metadata: dict[str, Any]
    retention_s: float
    model: str | None = None
    model_fingerprint: str | None = None
    collection: str | None = None
    tag: str | None = None
    deadline_s: float | None = None
    starting_deadline_s: float | None = None  # of a job of which nothing has been started
    active_deadline_s: float | None = None  # from its first start
    idempotency_key: str | None = None
    request_sha256: str | None = None
    webhook: dict[str, Any] | None = None  # revln.db.webhooks.outbox says what is in it
    size_bytes: int = 0
    images: Collection[str] = ()  # named by their SHA-256
    manifest: str | None = None
    quotas: Quotas = NO_QUOTAS


def submit_job(db: Database, new: NewJob) -> tuple[Job, bool]:
    """Write a job and its chunks in one transaction; the job, and whether it is new.

    Raises:
        IdempotencyMismatch: the key was used with another body.
        TooBusy: the quotas have no room for it.
        NotFound: its manifest was deleted meanwhile.
    """
    try:
        with db.write() as connection:
            known = find_by_key(connection, new.by.tenant, new.idempotency_key, new.request_sha256)
            return (known, False) if known else (_insert(connection, new), True)
    except IntegrityError:
        # Two submissions with one key at once: the other won between our look and our insert.
        with db.read() as connection:
            known = find_by_key(connection, new.by.tenant, new.idempotency_key, new.request_sha256)
        if known is None:
            raise
        return known, False


def find_by_key(connection: Connection, tenant: str, key: str | None, request_sha256: str | None) -> Job | None:
    """The job that this Idempotency-Key of the tenant's made, if any.

    Raises:
        IdempotencyMismatch: it was made from another body.
    """
    if key is None:
        return None
    columns = tables.jobs.c
    row = connection.execute(
        select(*JOB_COLUMNS).where(columns.tenant == tenant, columns.idempotency_key == key)
    ).one_or_none()
    if row is None:
        return None
    job = row_to(Job, row)
    if job.request_sha256 != request_sha256:
        raise IdempotencyMismatch(
            f"Idempotency-Key {key!r} already made job {job.id} from another body. Use a new key for a new job."
        )
    return job


def _insert(connection: Connection, new: NewJob) -> Job:
    tenant, key_id = new.by.tenant, new.by.key_id
    more = Usage(new.total, new.size_bytes)
    lock_tenant(connection, tenant)
    check_quotas(connection, tenant, key_id, more, new.quotas)
    turn = last_turn(connection, tenant, new.queue)
    now = connection.scalar(select(db_now()))  # the lock may have been waited for
    assert now is not None
    connection.execute(
        insert(tables.jobs).values(
            **{field.name: getattr(new, field.name) for field in fields(new) if field.name in tables.jobs.c},
            tenant=tenant,
            key_id=key_id,
            status=JobStatus.QUEUED,
            created_at=now,
            deadline_at=earliest(now, new.deadline_s, new.starting_deadline_s),
        )
    )
    count = 0
    for batch in _batches(enumerate(new.chunks), _INSERT_BATCH):
        rows = []
        for number, chunk in batch:
            turn += max(chunk.n_items, 1)
            rows.append(
                (
                    new.id, number, ChunkState.QUEUED, new.queue, tenant, turn, new.max_attempts, now,
                    chunk.first_index, chunk.n_items, *source_columns(chunk.source).values(),
                )
            )  # fmt: skip
        bulk.insert(connection, tables.chunks, _CHUNK_COLUMNS, rows)
        count += len(rows)
    connection.execute(update(tables.jobs).where(tables.jobs.c.id == new.id).values(chunks_queued=count))
    add_event(connection, new.id, "job.queued", {"total": new.total})
    record(connection, new.by, "job.submit", f"{new.id} ({new.kind})")
    check_total(connection, more, new.quotas)
    charge(connection, tenant, key_id, more)
    hold_uploads(connection, new.id, tenant, "image", new.images)
    if new.manifest and not hold_uploads(connection, new.id, tenant, "manifest", [new.manifest]):
        raise NotFound(f"The manifest {new.manifest} was deleted meanwhile. POST /v1/manifests uploads one.")
    return get_job(connection, new.id)


def _batches(source: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(source)
    while batch := list(islice(iterator, size)):
        yield batch
