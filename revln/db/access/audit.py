"""The audit log: who did what, when and from where. A row is written in the transaction of what it tells of."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from revln.access import Caller
from revln.db import tables
from revln.db.engine import db_now
from revln.db.rows import columns_of, row_to

__all__ = ["AuditEntry", "list_audit", "record"]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """``who``: a key's id, or in words who acted without one; ``what``: the id or the name of what was acted upon."""

    id: int
    created_at: float
    who: str
    tenant: str
    action: str
    what: str
    address: str | None


_MOST = 640  # characters that the column holds
_COLUMNS = columns_of(tables.audit, AuditEntry)


def record(connection: Connection, by: Caller, action: str, what: str, tenant: str | None = None) -> None:
    """``tenant``: whose the thing is, where that is not the caller's own."""
    connection.execute(
        insert(tables.audit).values(
            created_at=db_now(),
            who=by.who,
            tenant=tenant or by.tenant,
            action=action,
            what=what[:_MOST],
            address=by.address,
        )
    )


def list_audit(
    connection: Connection, tenant: str | None, limit: int, before_id: int | None = None, action: str | None = None
) -> list[AuditEntry]:
    """Newest first, of one tenant or of all."""
    columns = tables.audit.c
    query = select(*_COLUMNS).order_by(columns.id.desc()).limit(limit)
    if tenant is not None:
        query = query.where(columns.tenant == tenant)
    if before_id is not None:
        query = query.where(columns.id < before_id)
    if action is not None:
        query = query.where(columns.action == action)
    return [row_to(AuditEntry, row) for row in connection.execute(query)]
