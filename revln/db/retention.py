"""What has had its time goes, a small transaction after the other.

A job of a million items is 15,000 chunks with as many results. One transaction over all of them would hold SQLite's
write lock for many seconds, and keep PostgreSQL from cleaning up behind it. So a job is first *retired*, in one row:
from then on nobody sees it. Its rows go in steps, each as long as the caller likes, and the job's own row goes last.
A collection of a million items likewise: its own row goes at once, and another one says what is still to be removed.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, Table, delete, insert, select, tuple_, update

from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.keyed import in_index_order

__all__ = [
    "expire_audit", "expire_embeddings", "purge", "purge_collections", "retire", "retire_collections", "retire_expired",
]  # fmt: skip

_JOBS = 100  # retired, or purged together
# What hangs on a job, by the key that tells rows apart. A chunk's result goes with it.
_OF_A_JOB: tuple[tuple[Table, tuple[str, ...]], ...] = (
    (tables.chunks, ("job_id", "number")),
    (tables.events, ("id",)),
    (tables.job_uploads, ("job_id", "kind", "sha256")),
)
_OF_A_COLLECTION: tuple[tuple[Table, tuple[str, ...]], ...] = (
    (tables.vectors, ("collection_id", "seq")),
    (tables.items, ("collection_id", "item_id")),
    (tables.tombstones, ("collection_id", "item_id")),
    (tables.filter_deletes, ("collection_id", "accepted")),
)


def retire(connection: Connection, *which: Any) -> int:
    """Let finished jobs be gone for everybody; how many. Their idempotency keys are free again."""
    gone = update(tables.jobs).where(*which, tables.jobs.c.deleted_at.is_(None))
    return connection.execute(gone.values(deleted_at=db_now(), expires_at=None, idempotency_key=None)).rowcount


def retire_expired(db: Database) -> int:
    """Retire some of the finished jobs whose retention has passed; how many."""
    columns = tables.jobs.c
    expired = columns.expires_at < db_now()
    with db.write() as connection:
        # Asked twice: a job that is retried meanwhile (PostgreSQL) has no end any more.
        return retire(connection, columns.id.in_(select(columns.id).where(expired).limit(_JOBS)), expired)


def purge(db: Database, most: int) -> int:
    """Remove up to ``most`` rows of retired jobs, and those jobs of which nothing is left; 0 once all are gone.

    Any number of processes may do this at once: each takes jobs that no other one has locked.
    """
    columns = tables.jobs.c
    with db.write() as connection:
        retired = select(columns.id).where(columns.deleted_at.is_not(None)).order_by(columns.deleted_at).limit(_JOBS)
        ids = list(connection.scalars(retired.with_for_update(skip_locked=True)))
        removed = 0
        for table, key in _OF_A_JOB:
            if ids and removed < most:
                some = _keys(table, key).where(table.c.job_id.in_(ids))
                removed += _remove(connection, table, some, most - removed)
        if ids and removed < most:
            removed += connection.execute(delete(tables.jobs).where(columns.id.in_(ids))).rowcount
        return removed


def retire_collections(connection: Connection, *which: Any) -> int:
    """Delete these rows of ``collections``, and note that what was in them is to be removed; how many."""
    # What was really deleted: another transaction may have made one of them serve meanwhile.
    ids = connection.scalars(delete(tables.collections).where(*which).returning(tables.collections.c.id)).all()
    if ids:
        connection.execute(insert(tables.retired_collections).values(retired_at=db_now()), [{"id": one} for one in ids])
    return len(ids)


def purge_collections(db: Database, most: int) -> int:
    """Remove up to ``most`` rows of a deleted collection; 0 once nothing is left of any.

    Any number of processes may do this at once: each takes a collection that no other one has locked.
    """
    columns = tables.retired_collections.c
    with db.write() as connection:
        oldest = select(columns.id).order_by(columns.retired_at).limit(1)
        found = connection.scalar(oldest.with_for_update(skip_locked=True))
        if found is None:
            return 0
        removed = 0
        in_index_order(connection)  # from the table itself, each step would pass all rows that are gone already
        for table, key in _OF_A_COLLECTION:
            if removed < most:
                some = _keys(table, key).where(table.c.collection_id == found).order_by(*key)
                removed += _remove(connection, table, some, most - removed)
        if removed < most:
            removed += connection.execute(delete(tables.retired_collections).where(columns.id == found)).rowcount
        return removed


def _keys(table: Table, key: tuple[str, ...]) -> Select[Any]:
    return select(*(table.c[name] for name in key))


def _remove(connection: Connection, table: Table, some: Select[Any], most: int) -> int:
    """Up to ``most`` rows of a table, whose keys ``some`` selects."""
    key = tuple_(*some.selected_columns)
    return connection.execute(delete(table).where(key.in_(some.limit(most)))).rowcount


def expire_embeddings(db: Database, kept_s: float, most: int) -> int:
    """Forget up to ``most`` of the vectors that were computed so long ago; how many. They can be computed again."""
    return _expire(db, tables.embeddings, ("fingerprint", "content_key"), kept_s, most)


def expire_audit(db: Database, kept_s: float, most: int) -> int:
    return _expire(db, tables.audit, ("id",), kept_s, most)


def _expire(db: Database, table: Table, key: tuple[str, ...], kept_s: float, most: int) -> int:
    created_at = table.c.created_at
    old = _keys(table, key).where(created_at < db_now() - kept_s).order_by(created_at)
    with db.write() as connection:
        return _remove(connection, table, old, most)
