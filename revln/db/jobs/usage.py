"""How much waits, of each key and tenant and in all; and that it is never more than the quotas allow.

``usage`` repeats what the open jobs say, so that a submission need not add up a hundred thousand of them. A row moves
only in the transaction that moves its jobs (`revln.db.jobs.settle.settle_job`), and only there by what moved.

A submission holds its tenant's lock from the look at the quotas to its commit, so that no other one comes in between;
the lock of all tenants it takes last, and holds for as long as a commit takes. What ends frees quota without any lock.
Order of locks: a job's row and its chunks, a tenant's, all tenants', a row of ``usage``.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, text, update

from revln.db import tables
from revln.db.engine import Database
from revln.db.jobs.lists import drain_rate
from revln.db.jobs.read import OPEN, Job
from revln.db.upsert import insert_or_ignore
from revln.errors import TooBusy

__all__ = [
    "NO_QUOTAS",
    "Quotas",
    "Usage",
    "charge",
    "check_quotas",
    "check_total",
    "lock_tenant",
    "mend_usage",
    "move_usage",
    "total_usage",
    "usage_of",
]

log = logging.getLogger(__name__)

_C = tables.usage.c
_LOCKS = 7_265_766  # the class of our advisory locks on PostgreSQL; SQLite's write transaction is the lock
_LEAST_S, _MOST_S = 5, 3_600
_UNKNOWN_S = 60  # nothing was finished in the last minute: by then there may be a rate to reckon with


@dataclass(frozen=True, slots=True)
class Usage:
    """Items accepted and not yet done, and the bytes that jobs not yet ended came with."""

    items: int = 0
    size_bytes: int = 0

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.items - other.items, self.size_bytes - other.size_bytes)


@dataclass(frozen=True, slots=True)
class Quotas:
    """The most that may wait; 0: no limit."""

    key_items: int = 0
    key_bytes: int = 0
    tenant_items: int = 0
    tenant_bytes: int = 0
    items: int = 0
    size_bytes: int = 0

    @property
    def least_items(self) -> int:
        """The smallest of them: what no single job may pass; 0: none does."""
        return min((most for most in (self.key_items, self.tenant_items, self.items) if most), default=0)

    @property
    def least_bytes(self) -> int:
        return min((most for most in (self.key_bytes, self.tenant_bytes, self.size_bytes) if most), default=0)


NO_QUOTAS = Quotas()


def lock_tenant(connection: Connection, tenant: str) -> None:
    """Let no other submission of the tenant in between until this transaction ends."""
    _lock(connection, tenant)


def _lock(connection: Connection, name: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:of, hashtext(:name))"), {"of": _LOCKS, "name": name})


def total_usage(connection: Connection, tenant: str | None = None, key_id: str | None = None) -> Usage:
    query = select(func.coalesce(func.sum(_C.queued_items), 0), func.coalesce(func.sum(_C.queued_bytes), 0))
    if tenant is not None:
        query = query.where(_C.tenant == tenant)
    if key_id is not None:
        query = query.where(_C.key_id == key_id)
    items, size_bytes = connection.execute(query).one()
    return Usage(int(items), int(size_bytes))


def check_quotas(connection: Connection, tenant: str, key_id: str | None, more: Usage, quotas: Quotas) -> None:
    """Raises TooBusy if the tenant's or the key's quota has no room for this. The caller holds the tenant's lock."""
    if key_id is not None and (quotas.key_items or quotas.key_bytes):
        _check(connection, f"of key {key_id}", tenant, key_id, more, quotas.key_items, quotas.key_bytes)
    if quotas.tenant_items or quotas.tenant_bytes:
        _check(connection, f"of tenant {tenant}", tenant, None, more, quotas.tenant_items, quotas.tenant_bytes)


def check_total(connection: Connection, more: Usage, quotas: Quotas) -> None:
    """Raises TooBusy if all tenants together would have too much waiting.

    The last thing before the commit but for `move_usage`: every submission waits for the lock that this takes.
    """
    if quotas.items or quotas.size_bytes:
        _lock(connection, "")
        _check(connection, "in all", None, None, more, quotas.items, quotas.size_bytes)


def charge(connection: Connection, tenant: str, key_id: str | None, more: Usage) -> None:
    """Count what was just inserted."""
    row = {"tenant": tenant, "key_id": key_id or "", "queued_items": 0, "queued_bytes": 0}
    insert_or_ignore(connection, tables.usage, [row], key=("tenant", "key_id"))
    move_usage(connection, tenant, key_id, more)


def _check(
    connection: Connection,
    whose: str,
    tenant: str | None,
    key_id: str | None,
    more: Usage,
    most_items: int,
    most_bytes: int,
) -> None:
    now = total_usage(connection, tenant, key_id)
    for waiting, added, most, unit in (
        (now.items, more.items, most_items, "items"),
        (now.size_bytes, more.size_bytes, most_bytes, "bytes"),
    ):
        if most and waiting + added > most:
            rate = drain_rate(connection, tenant)
            # Bytes go as items do: when so much of what waits is done, so much of them is free.
            share = min(1.0, (waiting + added - most) / waiting) if waiting else 1.0
            again_s = _UNKNOWN_S if rate <= 0 else math.ceil(share * max(now.items, 1) / rate)
            again_s = min(max(again_s, _LEAST_S), _MOST_S)
            raise TooBusy(
                f"{waiting:,} {unit} {whose} wait already and this job has {added:,}; at most {most:,} may wait. "
                f"At {rate:.3g} items/s there should be room in {again_s} s.",
                again_s,
            )


def move_usage(connection: Connection, tenant: str, key_id: str | None, by: Usage) -> None:
    """Add to what waits; what is below zero frees."""
    if by == Usage():
        return
    connection.execute(
        update(tables.usage)
        .where(_C.tenant == tenant, _C.key_id == (key_id or ""))
        .values(queued_items=_C.queued_items + by.items, queued_bytes=_C.queued_bytes + by.size_bytes)
    )


def usage_of(job: Job) -> Usage:
    """What a job has waiting."""
    if job.status.done:
        return Usage()
    return Usage(job.total - job.succeeded - job.failed, job.size_bytes)


def mend_usage(db: Database) -> int:
    """Count anew what waits, in case a process of an older version counted otherwise; how many rows were wrong."""
    jobs = tables.jobs.c
    with db.read() as connection:
        keys = connection.execute(select(_C.tenant, _C.key_id)).all()
    wrong = 0
    for tenant, key_id in keys:
        this = (_C.tenant == tenant) & (_C.key_id == key_id)
        with db.write() as connection:
            # The row first: who has changed it has committed then, and who has yet to will do so after us.
            row = connection.execute(
                select(_C.queued_items, _C.queued_bytes).where(this).with_for_update()
            ).one_or_none()
            items, size_bytes = connection.execute(
                select(
                    func.coalesce(func.sum(jobs.total - jobs.succeeded - jobs.failed), 0),
                    func.coalesce(func.sum(jobs.size_bytes), 0),
                ).where(OPEN, jobs.tenant == tenant, func.coalesce(jobs.key_id, "") == key_id)
            ).one()
            if row is not None and tuple(row) != (int(items), int(size_bytes)):
                log.warning(
                    "usage of tenant %s, key %s was %s, is %s", tenant, key_id or "-", tuple(row), (items, size_bytes)
                )
                connection.execute(update(tables.usage).where(this).values(queued_items=items, queued_bytes=size_bytes))
                wrong += 1
    return wrong
