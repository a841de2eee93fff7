"""What has had its time goes, a small transaction after the other.

A job of a million items is 15,000 chunks with as many results. One transaction over all of them would hold SQLite's
write lock for many seconds, and keep PostgreSQL from cleaning up behind it. So a job is first *retired*, in one row:
from then on nobody sees it. Its rows go in steps, each as long as the caller likes, and the job's own row goes last.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, delete, select, tuple_, update

from revln.db import tables
from revln.db.engine import Database, db_now

__all__ = ["expire_audit", "expire_embeddings", "purge", "retire", "retire_expired"]

_JOBS = 100  # retired, or purged together
# What hangs on a job, by the key that tells rows apart. A chunk's result goes with it.
_OF_A_JOB: tuple[tuple[Table, tuple[str, ...]], ...] = (
    (tables.chunks, ("job_id", "number")),
    (tables.events, ("id",)),
    (tables.job_uploads, ("job_id", "kind", "sha256")),
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
                removed += _remove(connection, table, key, ids, most - removed)
        if ids and removed < most:
            removed += connection.execute(delete(tables.jobs).where(columns.id.in_(ids))).rowcount
        return removed


def _remove(connection: Connection, table: Table, key: tuple[str, ...], ids: list[str], most: int) -> int:
    columns = [table.c[name] for name in key]
    some = select(*columns).where(table.c.job_id.in_(ids)).limit(most)
    return connection.execute(delete(table).where(tuple_(*columns).in_(some))).rowcount


def expire_embeddings(db: Database, kept_s: float, most: int) -> int:
    """Forget up to ``most`` of the vectors that were computed so long ago; how many. They can be computed again."""
    return _expire(db, tables.embeddings, ("fingerprint", "content_key"), kept_s, most)


def expire_audit(db: Database, kept_s: float, most: int) -> int:
    return _expire(db, tables.audit, ("id",), kept_s, most)


def _expire(db: Database, table: Table, key: tuple[str, ...], kept_s: float, most: int) -> int:
    columns = [table.c[name] for name in key]
    old = select(*columns).where(table.c.created_at < db_now() - kept_s).order_by(table.c.created_at).limit(most)
    with db.write() as connection:
        return connection.execute(delete(table).where(tuple_(*columns).in_(old))).rowcount
