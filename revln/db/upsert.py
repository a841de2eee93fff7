"""INSERT … ON CONFLICT, which SQLAlchemy spells once for each database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

__all__ = ["insert_or_ignore", "insert_or_update"]


def _insert(connection: Connection, table: Table) -> Any:
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def insert_or_update(connection: Connection, table: Table, rows: Sequence[dict[str, Any]], key: Sequence[str]) -> None:
    """Insert rows; where the key is there already, overwrite the other columns."""
    if not rows:
        return
    statement = _insert(connection, table)
    others = {name: statement.excluded[name] for name in rows[0] if name not in key}
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=others), list(rows))


def insert_or_ignore(connection: Connection, table: Table, rows: Sequence[dict[str, Any]], key: Sequence[str]) -> None:
    """Insert rows; those whose key is there already are left as they are."""
    if rows:
        # In the order of the key: two transactions that insert the same keys in different orders would deadlock.
        ordered = sorted(rows, key=lambda row: [str(row[name]) for name in key])
        statement = _insert(connection, table).on_conflict_do_nothing(index_elements=list(key))
        connection.execute(statement, ordered)
