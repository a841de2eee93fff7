"""Uploads go: by age once nothing needs them, or by their owner's word. The row first, then the bytes.

An upload is needed by

- a job that names it and is not done with all of its items: it may be retried;
- a live item of a collection, whichever generation: a migration embeds its picture again;
- for pictures, an open job with a manifest of the same tenant, whose lines may name any of them.

Whoever names an upload and whoever takes it away exclude each other (`revln.db.uploads.uploads.lock_uploads`), so none
goes under a job that was accepted. A crash between row and bytes leaves bytes of nobody's, which are collected later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy import Connection, delete, func, literal, select, tuple_, update

from revln.access import Caller
from revln.db import tables
from revln.db.access.audit import record
from revln.db.embeddings import forget_vectors
from revln.db.engine import Database, db_now
from revln.db.uploads.uploads import UploadKind, lock_uploads
from revln.errors import Conflict, NotFound
from revln.jobs.state import JobStatus

__all__ = ["delete_upload", "expire_uploads", "ownerless", "remove_ownerless"]

_U = tables.uploads.c
_KEY = (_U.tenant, _U.sha256, _U.kind)


def expire_uploads(db: Database, kept_s: float, most: int) -> tuple[int, list[tuple[UploadKind, str]]]:
    """Look at up to ``most`` of the uploads that were not used for so long: how many, and those that are gone now.

    One that is still needed counts as used now, so each is looked at once in ``kept_s``, however many there are.
    """
    with db.write() as connection:
        lock_uploads(connection, alone=True)
        readers = _readers(connection)
        old = select(*_KEY, *_needs()).where(_U.last_used_at < db_now() - kept_s).order_by(_U.last_used_at)
        rows = connection.execute(old.limit(most)).all()
        needed = [bool(row.job or row.collection or (row.kind == "image" and row.tenant in readers)) for row in rows]
        keys = [(row.tenant, row.sha256, row.kind) for row in rows]
        kept = [key for key, need in zip(keys, needed, strict=True) if need]
        gone = [key for key, need in zip(keys, needed, strict=True) if not need]
        if kept:
            connection.execute(update(tables.uploads).where(tuple_(*_KEY).in_(kept)).values(last_used_at=db_now()))
        if gone:
            connection.execute(delete(tables.uploads).where(tuple_(*_KEY).in_(gone)))
        return len(rows), [(kind, sha256) for _, sha256, kind in gone]


def delete_upload(db: Database, by: Caller, kind: UploadKind, sha256: str) -> None:
    """Take an upload away from its tenant; with a picture that nobody else has, its cached vectors go too.

    Raises:
        NotFound: the tenant does not have it.
        Conflict: it is needed; the message says by what.
    """
    with db.write() as connection:
        lock_uploads(connection, alone=True)
        this = (_U.tenant == by.tenant, _U.sha256 == sha256, _U.kind == kind)
        needs = connection.execute(select(*_needs()).where(*this)).one_or_none()
        if needs is None:
            raise NotFound(f"There is no {kind} {sha256}.")
        if needs.job:
            raise Conflict(f"Job {needs.job} names this {kind} and is not done with it. Delete the job first.")
        if needs.collection:
            raise Conflict(
                f"It is the picture of an item of collection {needs.collection!r}. Delete the item first; a former "
                f"generation is deleted by itself (DELETE /v1/collections/{needs.collection}/generations/former)."
            )
        if kind == "image" and (job := _readers(connection).get(by.tenant)):
            raise Conflict(f"Job {job} reads a manifest that may name this image. Wait for its end, or cancel it.")
        connection.execute(delete(tables.uploads).where(*this))
        if kind == "image" and ownerless(connection, kind, [sha256]):
            forget_vectors(connection, f"image:{sha256}")
        record(connection, by, f"{kind}.delete", sha256)


def ownerless(connection: Connection, kind: UploadKind, sha256s: Collection[str]) -> set[str]:
    """Those of the blobs that no tenant has; a few hundred at a time."""
    owned = select(_U.sha256).where(_U.kind == kind, _U.sha256.in_(sha256s))
    return set(sha256s) - set(connection.scalars(owned))


def remove_ownerless(db: Database, kind: UploadKind, sha256: str, remove: Callable[[], bool]) -> bool:
    """Call ``remove`` if nobody has the blob; what it says. Whoever wants to have it waits until that is done."""
    with db.write() as connection:
        lock_uploads(connection, alone=True)
        return bool(ownerless(connection, kind, [sha256])) and remove()


def _needs() -> list[Any]:
    """Of a row of ``uploads``: a job that needs it, and a collection, if there are any."""
    jobs, named = tables.jobs.c, tables.job_uploads.c
    job = (
        select(func.min(jobs.id))
        .join(tables.job_uploads, named.job_id == jobs.id)
        .where(named.sha256 == _U.sha256, named.kind == _U.kind, jobs.tenant == _U.tenant)
        .where(jobs.deleted_at.is_(None), jobs.succeeded < jobs.total)
    )
    vectors, items, holder, serving = (
        tables.vectors.c, tables.items.c, tables.collections, tables.collections.alias("serving"),
    )  # fmt: skip
    collection = (
        select(func.min(func.coalesce(serving.c.name, holder.c.name)))
        .join(tables.vectors, vectors.collection_id == holder.c.id)
        .join(tables.items, (items.collection_id == holder.c.id) & (items.item_id == vectors.item_id))
        .outerjoin(serving, serving.c.id == holder.c.shadow_of)
        .where(vectors.image_sha256 == _U.sha256, items.seq == vectors.seq)
        .where(holder.c.tenant == _U.tenant, _U.kind == literal("image"))
    )
    return [
        job.correlate(tables.uploads).scalar_subquery().label("job"),
        collection.correlate(tables.uploads).scalar_subquery().label("collection"),
    ]


def _readers(connection: Connection) -> dict[str, str]:
    """A job of each tenant's that is open and reads a manifest."""
    jobs, named = tables.jobs.c, tables.job_uploads.c
    rows = connection.execute(
        select(jobs.tenant, func.min(jobs.id).label("job"))
        .join(tables.job_uploads, (named.job_id == jobs.id) & (named.kind == "manifest"))
        .where(jobs.status.in_([JobStatus.QUEUED, JobStatus.RUNNING]))
        .group_by(jobs.tenant)
    )
    return {row.tenant: row.job for row in rows}
