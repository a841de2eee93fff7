"""The id of an installation: what uses this database is one."""

from __future__ import annotations

from sqlalchemy import Connection, select
from uuid_utils.compat import uuid7

from revln.db import tables
from revln.db.engine import Database
from revln.db.upsert import insert_or_ignore

__all__ = ["installation_id"]


def installation_id(db: Database) -> str:
    """Return the id; the first one that asks makes it. Raises Unavailable."""
    with db.read() as connection:
        known = _read(connection)
    if known is not None:
        return known
    with db.write() as connection:
        insert_or_ignore(connection, tables.installation, [{"number": 1, "id": str(uuid7())}], key=("number",))
    with db.read() as connection:
        made = _read(connection)
    assert made is not None
    return made


def _read(connection: Connection) -> str | None:
    return connection.scalar(select(tables.installation.c.id))
