"""Whose a stored picture or manifest is. The bytes are kept once; a tenant without a row here does not have them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from sqlalchemy import Connection, func, select, update

from revln.access import DEFAULT_TENANT
from revln.db import bulk, tables
from revln.db.access.audit import check_key
from revln.db.engine import Database, db_now
from revln.db.upsert import insert_or_ignore

__all__ = [
    "UploadKind",
    "add_uploads",
    "default_tenant_since",
    "hold_uploads",
    "lock_uploads",
    "own_uploads",
    "used_uploads",
]

UploadKind = Literal["image", "manifest"]

_IN_BATCH = 500
_TOUCH_S = 3_600.0  # a use is noted to the hour, so that reading a picture is hardly ever a write

_LOCK = 0x72766C6E_75706C64  # of ours alone among PostgreSQL's advisory locks: "rvlnupld"

_C = tables.uploads.c


def lock_uploads(connection: Connection, *, alone: bool = False) -> None:
    """Name uploads beside others who do, or take them away ``alone``, until the transaction ends.

    SQLite's write transactions are alone anyway. Taken as late as can be: who takes uploads away waits for all others,
    and those that come after wait for that one.
    """
    if connection.dialect.name == "postgresql":
        lock = func.pg_advisory_xact_lock if alone else func.pg_advisory_xact_lock_shared
        connection.execute(select(lock(_LOCK)))


def add_uploads(
    db: Database, tenant: str, kind: UploadKind, sizes: Mapping[str, int], key_id: str | None = None
) -> set[str]:
    """Give a tenant blobs by their SHA-256, each with its size in bytes; those that are new to it.

    Before their bytes are put: once this has returned, nobody takes these away for nobody's.

    Raises:
        Unauthorized: the key that they came with has ended.
    """
    if not sizes:
        return set()
    with db.write() as connection:
        check_key(connection, key_id)
        lock_uploads(connection)
        known = set(_ages(connection, tenant, kind, sizes))
        now = connection.scalar(select(db_now()))
        rows = [
            {"tenant": tenant, "sha256": sha256, "kind": kind, "size_bytes": size, "created_at": now,
             "last_used_at": now}
            for sha256, size in sizes.items()
        ]  # fmt: skip
        insert_or_ignore(connection, tables.uploads, rows, key=("tenant", "sha256", "kind"))
        _touch(connection, tenant, kind, known)
    return set(sizes) - known


def used_uploads(db: Database, tenant: str, kind: UploadKind, sha256s: Collection[str]) -> set[str]:
    """Those of the blobs that the tenant has; they count as used now."""
    if not sha256s:
        return set()
    with db.read() as connection:
        ages = _ages(connection, tenant, kind, sha256s)
    if old := {sha256 for sha256, age_s in ages.items() if age_s > _TOUCH_S}:
        with db.write() as connection:
            _touch(connection, tenant, kind, old)
    return set(ages)


def own_uploads(connection: Connection, tenant: str, kind: UploadKind, sha256s: Collection[str]) -> set[str]:
    """The same within a transaction, without a note of the use."""
    return set(_ages(connection, tenant, kind, sha256s))


def hold_uploads(
    connection: Connection, job_id: str, tenant: str, kind: UploadKind, sha256s: Collection[str]
) -> set[str]:
    """Keep for a new job what it names, in its transaction, also what is uploaded later; what the tenant has now."""
    if not sha256s:
        return set()
    lock_uploads(connection)
    ages = _ages(connection, tenant, kind, sha256s)
    rows = [(job_id, kind, sha256) for sha256 in set(sha256s)]
    bulk.insert(connection, tables.job_uploads, ("job_id", "kind", "sha256"), rows)
    _touch(connection, tenant, kind, {sha256 for sha256, age_s in ages.items() if age_s > _TOUCH_S})
    return set(ages)


def default_tenant_since(connection: Connection) -> float:
    """When there began to be tenants, in seconds since 1970: what is older and has no row is the default tenant's."""
    columns = tables.tenants.c
    return float(connection.scalar(select(columns.created_at).where(columns.name == DEFAULT_TENANT)) or 0.0)


def _ages(connection: Connection, tenant: str, kind: UploadKind, sha256s: Collection[str]) -> dict[str, float]:
    """Seconds since the last use of each that is there."""
    found: dict[str, float] = {}
    unique = list(dict.fromkeys(sha256s))
    for start in range(0, len(unique), _IN_BATCH):
        query = select(_C.sha256, (db_now() - _C.last_used_at).label("age_s")).where(
            _C.tenant == tenant, _C.kind == kind, _C.sha256.in_(unique[start : start + _IN_BATCH])
        )
        found.update({row.sha256: row.age_s for row in connection.execute(query)})
    return found


def _touch(connection: Connection, tenant: str, kind: UploadKind, sha256s: Collection[str]) -> None:
    ordered = sorted(sha256s)  # two that touch the same rows in different orders would deadlock
    for start in range(0, len(ordered), _IN_BATCH):
        connection.execute(
            update(tables.uploads)
            .where(_C.tenant == tenant, _C.kind == kind, _C.sha256.in_(ordered[start : start + _IN_BATCH]))
            .values(last_used_at=db_now())
        )
