"""Some rows of a large collection, found by their keys, whatever PostgreSQL's planner thinks of the collection.

It plans by statistics that are minutes old, or of a time when this collection was not there. Then it takes every
collection for small, and reads the whole of it rather than look up a list of keys, or sorts it for each page. SQLite
goes by the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, column, func, select, text, true
from sqlalchemy.dialects.postgresql import ARRAY

__all__ = ["by_keys", "in_index_order"]


def by_keys(
    connection: Connection, shown: Sequence[ColumnElement[Any]], owner: ColumnElement[bool], key: ColumnElement[Any],
    keys: Sequence[Any],
) -> Select[Any]:  # fmt: skip
    """``SELECT shown … WHERE owner AND key IN (keys)``, in no order."""
    if connection.dialect.name == "sqlite":
        return select(*shown).where(owner, key.in_(keys))
    array = func.unnest(bindparam(None, list(keys), ARRAY(key.type)))
    wanted = array.table_valued(column("key", key.type)).render_derived(name="wanted")
    # OFFSET 0 keeps the inner query as it is: one look into the index for each key.
    found = select(*shown).where(owner, key == wanted.c.key).offset(0).lateral("found")
    return select(found).select_from(wanted).join(found, true())


def in_index_order(connection: Connection) -> None:
    """Have what this transaction reads in the order of an index be read from there a page at a time, never sorted."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL enable_sort = off"))
