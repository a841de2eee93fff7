"""What must hold whatever died: looked up in the tables themselves, not in what the API says of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import Connection, func, select

from revln.blobs import BlobStore
from revln.db import tables
from revln.db.engine import Database
from revln.errors import RevlnError
from revln.jobs.state import ChunkState, JobStatus
from worker.index.build_process import PREFIX

__all__ = ["violations"]

_OPEN = ("queued", "running")
_BEGINS = ("job.queued", "job.started")  # again, after a retry
_ENDS = tuple(f"job.{status}" for status in JobStatus if status.done)
_WRITTEN = (ChunkState.SUCCEEDED, ChunkState.DEAD)


def violations(db: Database, blobs: BlobStore | None = None, accepted: Collection[str] | None = None) -> list[str]:
    """Everything that is wrong. ``accepted``: the jobs that a client was told of, all of which must be there, and have
    ended; None leaves out both, for a look at a database that is still at work."""
    with db.read() as connection:
        return [
            *_jobs(connection, accepted),
            *_chunks(connection),
            *_usage(connection),
            *_collections(connection, blobs),
        ]


def _jobs(connection: Connection, accepted: Collection[str] | None) -> Iterator[str]:
    status = {row.id: row.status for row in connection.execute(select(tables.jobs.c.id, tables.jobs.c.status))}
    for job_id in accepted or ():
        if job_id not in status:
            yield f"job {job_id} was accepted and is not there"
    if accepted is not None:
        opened = Counter(value for value in status.values() if value in _OPEN)
        yield from (f"{count} jobs are {value} for ever" for value, count in opened.items())
    columns = tables.events.c
    over: set[str] = set()
    for event in connection.execute(select(columns.job_id, columns.type).order_by(columns.id)):
        if event.type in _BEGINS:
            over.discard(event.job_id)
        elif event.job_id in over:
            yield f"job {event.job_id} had ended when it told {event.type}"
        elif event.type in _ENDS:
            over.add(event.job_id)


def _chunks(connection: Connection) -> Iterator[str]:
    results = tables.results.c
    written = {
        (row.job_id, row.number): row
        for row in connection.execute(select(results.job_id, results.number, results.attempt, results["items"]))
    }
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for chunk in connection.execute(select(tables.chunks)):
        name = f"chunk {chunk.job_id}.{chunk.number}"
        state = ChunkState(chunk.state)
        result = written.get((chunk.job_id, chunk.number))
        counts[chunk.job_id].update({f"chunks_{state}": 1, "succeeded": chunk.succeeded, "failed": chunk.failed})
        if (state is ChunkState.RUNNING) is (chunk.lease_until is None):
            yield f"{name} is {state} and its lease runs until {chunk.lease_until}"
        if chunk.attempt > chunk.max_attempts:
            yield f"{name} was tried {chunk.attempt} times, of {chunk.max_attempts}"
        if state in _WRITTEN:
            yield from (f"{name}: {fault}" for fault in _result(chunk, result))
    for job in connection.execute(select(tables.jobs)):
        for counter in (*(f"chunks_{state}" for state in ChunkState), "succeeded", "failed"):
            if getattr(job, counter) != counts[job.id][counter]:
                yield f"job {job.id} counts {getattr(job, counter)} {counter}, its chunks {counts[job.id][counter]}"


def _result(chunk: Any, result: Any) -> Iterator[str]:
    if result is None:
        yield f"is {chunk.state} and has no result"
        return
    items = result._mapping["items"]
    if result.attempt != chunk.attempt:
        yield f"is at attempt {chunk.attempt}, its result was written by attempt {result.attempt}"
    if chunk.items == [None]:
        return  # a report, of any length
    if [item["index"] for item in items] != list(range(chunk.first_index, chunk.first_index + chunk.n_items)):
        yield f"has {chunk.n_items} items, its result {len(items)}"
    failed = sum(item.get("error") is not None for item in items)
    if (chunk.succeeded, chunk.failed) != (len(items) - failed, failed):
        yield f"counts {chunk.succeeded} + {chunk.failed} items, its result {len(items) - failed} + {failed}"


def _usage(connection: Connection) -> Iterator[str]:
    jobs, usage = tables.jobs.c, tables.usage.c
    opened = (
        select(
            jobs.tenant,
            func.coalesce(jobs.key_id, "").label("key"),
            func.sum(jobs.total - jobs.succeeded - jobs.failed),
            func.sum(jobs.size_bytes),
        )
        .where(jobs.status.in_(_OPEN))
        .group_by("tenant", "key")
    )
    counted = select(usage.tenant, usage.key_id, usage.queued_items, usage.queued_bytes)
    waits = {(tenant, key): (items, size) for tenant, key, items, size in connection.execute(opened)}
    for tenant, key, *says in connection.execute(counted):
        if tuple(says) != waits.pop((tenant, key), (0, 0)):
            yield f"usage of tenant {tenant}, key {key or '-'} is counted as {says} items and bytes, wrongly"
    for (tenant, key), these in waits.items():
        yield f"usage of tenant {tenant}, key {key or '-'} is not counted: {these} items and bytes"


def _collections(connection: Connection, blobs: BlobStore | None) -> Iterator[str]:
    log, items = tables.vectors.c, tables.items.c
    for collection in connection.execute(select(tables.collections)):
        name = f"collection {collection.name}"
        rows, last = connection.execute(
            select(func.count(), func.coalesce(func.max(log.seq), 0)).where(log.collection_id == collection.id)
        ).one()
        if not rows == last == collection.head_seq:
            yield f"{name}: {rows} rows in the log, the last is {last}, its head says {collection.head_seq}"
        live = connection.scalar(select(func.count()).where(items.collection_id == collection.id))
        if live != collection._mapping["count"]:
            yield f"{name}: {live} live items, it counts {collection._mapping['count']}"
        if collection.snapshot_id is None:
            continue
        snapshot = connection.execute(
            select(tables.snapshots).where(tables.snapshots.c.id == collection.snapshot_id)
        ).one_or_none()
        if snapshot is None or snapshot.state != "ready":
            yield f"{name}: its current snapshot {collection.snapshot_id} is {snapshot and snapshot.state}"
        elif blobs is not None:
            try:
                blobs.verify(snapshot.sha256, PREFIX)
            except RevlnError as err:
                yield f"{name}: its current snapshot: {err.message}"
