"""Many rows at once, by the shortest way that each database has: sqlite3's executemany, PostgreSQL's COPY and arrays.

SQLAlchemy's own way costs more than the databases themselves do here. Everything runs in the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

from sqlalchemy import JSON, Connection, Table
from sqlalchemy.exc import DBAPIError

__all__ = [
    "delete_items", "insert", "item_seqs", "live_items", "log_after", "move_items", "tombstones_of", "vectors_at",
]  # fmt: skip

Row = tuple[Any, ...]

_TYPES = {"BIGINT": "int8", "INTEGER": "int4", "VARCHAR": "varchar", "TEXT": "text", "BYTEA": "bytea", "JSONB": "jsonb",
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


def live_items(connection: Connection, collection_id: str, item_ids: list[str]) -> list[Row]:
    """(item, seq of its live row, position) of the items that are there."""
    return _by_keys(connection, "item_id, seq, position", "items", "item_id", collection_id, item_ids)


def tombstones_of(connection: Connection, collection_id: str, item_ids: list[str]) -> list[Row]:
    """(item, position) of those of the items that have one."""
    return _by_keys(connection, "item_id, position", "tombstones", "item_id", collection_id, item_ids)


def move_items(connection: Connection, moved: Sequence[tuple[int, int, str, str]]) -> None:
    """Point items, given as (seq, position, collection, item), to their new rows."""
    if not moved:
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(
            "UPDATE items SET seq = ?, position = ? WHERE collection_id = ? AND item_id = ?", list(moved)
        )  # fmt: skip
        return
    seqs, positions, _, item_ids = (list(column) for column in zip(*moved, strict=True))
    # They are all there. An update that joins them to the table may read the whole of it; this goes by the index.
    connection.exec_driver_sql(
        "INSERT INTO items (collection_id, item_id, seq, position) "
        "SELECT %s, * FROM unnest(%s::varchar[], %s::bigint[], %s::bigint[]) "
        "ON CONFLICT (collection_id, item_id) DO UPDATE SET seq = excluded.seq, position = excluded.position",
        (moved[0][2], item_ids, seqs, positions),
    )


def delete_items(connection: Connection, collection_id: str, item_ids: list[str]) -> None:
    if not item_ids:
        return
    if connection.dialect.name == "sqlite":
        statement = "DELETE FROM items WHERE collection_id = ? AND item_id IN (SELECT value FROM json_each(?))"
        connection.exec_driver_sql(statement, (collection_id, json.dumps(item_ids)))
        return
    # By their places, which stay: the collection's row is locked.
    statement, values = _lookup(connection, "ctid", "items", "item_id", collection_id, item_ids)
    connection.exec_driver_sql(f"DELETE FROM items WHERE ctid = ANY(ARRAY({statement}))", values)  # noqa: S608


def log_after(connection: Connection, collection_id: str, after_seq: int, limit: int) -> list[Row]:
    """(seq, replaces_seq, vector) of the next rows."""
    # Bounded by seq, which has no gaps: by LIMIT alone, PostgreSQL may read and sort all the rest for each page.
    statement = "SELECT seq, replaces_seq, vector FROM vectors WHERE collection_id = ? AND seq > ? AND seq <= ?"
    found = _fetch(connection, statement, (collection_id, after_seq, after_seq + limit))
    return sorted(found, key=itemgetter(0))


def vectors_at(connection: Connection, collection_id: str, seqs: list[int]) -> list[Row]:
    """(seq, vector) of those rows that hold one, ascending."""
    found = _by_keys(connection, "seq, vector", "vectors", "seq", collection_id, seqs)
    return sorted((row for row in found if row[1] is not None), key=itemgetter(0))


def item_seqs(connection: Connection, collection_id: str) -> Iterator[int]:
    for row in _fetch(connection, "SELECT seq FROM items WHERE collection_id = ?", (collection_id,)):
        yield row[0]


# --- how each database is spoken to ----------------------------------------------------------------------------------


def _by_keys(
    connection: Connection, columns: str, table: str, key: str, collection_id: str, keys: list[Any]
) -> list[Row]:
    return _fetch(connection, *_lookup(connection, columns, table, key, collection_id, keys)) if keys else []


def _lookup(
    connection: Connection, columns: str, table: str, key: str, collection_id: str, keys: list[Any]
) -> tuple[str, Row]:
    """What `revln.db.keyed.by_keys` says, in the driver's own words."""
    if connection.dialect.name == "sqlite":
        wanted = "IN (SELECT value FROM json_each(?))"
        statement = f"SELECT {columns} FROM {table} WHERE collection_id = ? AND {key} {wanted}"  # noqa: S608
        return statement, (collection_id, json.dumps(keys))
    kind = "bigint" if key == "seq" else "varchar"
    statement = (
        f"SELECT found.* FROM unnest(%s::{kind}[]) AS wanted (key), LATERAL (SELECT {columns} FROM {table} "  # noqa: S608
        f"WHERE collection_id = %s AND {key} = wanted.key OFFSET 0) AS found"
    )
    return statement, (keys, collection_id)


def _fetch(connection: Connection, statement: str, values: Row) -> list[Row]:
    with _cursor(connection) as cursor:
        cursor.execute(statement if connection.dialect.name == "sqlite" else statement.replace("?", "%s"), values)
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
