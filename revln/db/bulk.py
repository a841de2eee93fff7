"""Many rows at once, by the shortest way that each database has: sqlite3's executemany, PostgreSQL's COPY and arrays.

SQLAlchemy's own way costs more than the databases themselves do here. Everything runs in the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import JSON, Connection, Table
from sqlalchemy.exc import DBAPIError

__all__ = [
    "delete_items", "insert", "item_seqs", "log_after", "move_items", "seqs_of_items", "vectors_at",
]  # fmt: skip

Row = tuple[Any, ...]

_TYPES = {"BIGINT": "int8", "VARCHAR": "varchar", "TEXT": "text", "BYTEA": "bytea", "JSONB": "jsonb",
          "DOUBLE PRECISION": "float8"}  # fmt: skip


def insert(connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Insert rows whose values are in the order of ``columns``; dicts go in as JSON."""
    if not rows:
        return
    names = ", ".join(columns)
    if connection.dialect.name == "sqlite":
        as_json = [at for at, name in enumerate(columns) if isinstance(table.c[name].type, JSON)]
        values = [_with_json(row, as_json) for row in rows] if as_json else list(rows)
        marks = ", ".join("?" * len(columns))
        connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", values)  # noqa: S608
        return
    from psycopg.types.json import Jsonb

    types = [_TYPES[table.c[name].type.compile(connection.dialect).partition("(")[0]] for name in columns]
    as_json = [at for at, kind in enumerate(types) if kind == "jsonb"]
    with _cursor(connection) as cursor, cursor.copy(
        f"COPY {table.name} ({names}) FROM STDIN (FORMAT BINARY)"
    ) as copy:  # fmt: skip
        copy.set_types(types)
        for row in rows:
            copied = list(row)
            for at in as_json:
                copied[at] = None if row[at] is None else Jsonb(row[at])
            copy.write_row(copied)


def _with_json(row: Row, places: list[int]) -> Row:
    values = list(row)
    for at in places:
        values[at] = None if row[at] is None else json.dumps(row[at])
    return tuple(values)


def seqs_of_items(connection: Connection, collection_id: str, item_ids: list[str]) -> dict[str, int]:
    """The live row of each of the items that are there."""
    return dict(_rows(connection, "SELECT item_id, seq FROM items WHERE collection_id = {} AND item_id IN ({})",
                      collection_id, item_ids))  # fmt: skip


def move_items(connection: Connection, moved: Sequence[tuple[int, str, str]]) -> None:
    """Point items, given as (seq, collection, item), to their new rows."""
    if not moved:
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(
            "UPDATE items SET seq = ? WHERE collection_id = ? AND item_id = ?", list(moved)
        )  # fmt: skip
        return
    seqs, _, item_ids = (list(column) for column in zip(*moved, strict=True))
    connection.exec_driver_sql(
        "UPDATE items SET seq = new.seq FROM unnest(%s::bigint[], %s::varchar[]) AS new (seq, item_id) "
        "WHERE items.collection_id = %s AND items.item_id = new.item_id",
        (seqs, item_ids, moved[0][1]),
    )


def delete_items(connection: Connection, collection_id: str, item_ids: list[str]) -> None:
    if item_ids:
        _execute(connection, "DELETE FROM items WHERE collection_id = {} AND item_id IN ({})", collection_id, item_ids)


def log_after(connection: Connection, collection_id: str, after_seq: int, limit: int) -> list[Row]:
    """(seq, replaces_seq, vector) of the next rows."""
    statement = (
        "SELECT seq, replaces_seq, vector FROM vectors WHERE collection_id = {} AND seq > {} ORDER BY seq LIMIT {}"
    )
    return _fetch(connection, statement, collection_id, after_seq, limit)


def vectors_at(connection: Connection, collection_id: str, seqs: list[int]) -> list[Row]:
    """(seq, vector) of those rows that hold one, ascending."""
    statement = ("SELECT seq, vector FROM vectors WHERE collection_id = {} AND seq IN ({}) AND vector IS NOT NULL "
                 "ORDER BY seq")  # fmt: skip
    return _rows(connection, statement, collection_id, seqs)


def item_seqs(connection: Connection, collection_id: str) -> Iterator[int]:
    for row in _fetch(connection, "SELECT seq FROM items WHERE collection_id = {}", collection_id):
        yield row[0]


# --- how each database is spoken to ----------------------------------------------------------------------------------


def _spelled(connection: Connection, statement: str) -> str:
    """``{}`` as the driver's mark, ``IN ({})`` as membership in one array."""
    if connection.dialect.name == "sqlite":
        return statement.replace("IN ({})", "IN (SELECT value FROM json_each(?))").replace("{}", "?")
    return statement.replace("IN ({})", "= ANY(%s)").replace("{}", "%s")


def _values(connection: Connection, collection_id: str, wanted: list[Any]) -> Row:
    return collection_id, json.dumps(wanted) if connection.dialect.name == "sqlite" else wanted


def _rows(connection: Connection, statement: str, collection_id: str, wanted: list[Any]) -> list[Row]:
    if not wanted:
        return []
    return _fetch(connection, statement, *_values(connection, collection_id, wanted))


def _execute(connection: Connection, statement: str, collection_id: str, wanted: list[Any]) -> None:
    connection.exec_driver_sql(_spelled(connection, statement), _values(connection, collection_id, wanted))


def _fetch(connection: Connection, statement: str, *values: Any) -> list[Row]:
    with _cursor(connection) as cursor:
        cursor.execute(_spelled(connection, statement), values)
        found: list[Row] = cursor.fetchall()
        return found


@contextmanager
def _cursor(connection: Connection) -> Iterator[Any]:
    """A cursor of the driver's own, in binary on PostgreSQL; its errors are raised as SQLAlchemy raises them."""
    dialect, driver = connection.dialect, connection.connection.driver_connection
    assert driver is not None
    cursor = driver.cursor() if dialect.name == "sqlite" else driver.cursor(binary=True)
    try:
        yield cursor
    except dialect.loaded_dbapi.Error as err:
        raise DBAPIError.instance(
            None, None, err, dialect.loaded_dbapi.Error, connection_invalidated=dialect.is_disconnect(err, None, None),
            dialect=dialect,
        ) from err  # fmt: skip
    finally:
        cursor.close()
