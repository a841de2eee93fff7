"""Computed vectors, found by what they are made of: one for each (content, model fingerprint)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, delete, func, select

from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.keyed import by_keys
from revln.db.upsert import insert_or_ignore

__all__ = ["cached_vectors", "forget_vectors", "store_vectors"]


_IN_BATCH = 500


def cached_vectors(connection: Connection, fingerprint: str, keys: Sequence[str]) -> dict[str, bytes]:
    """The vectors that this model has already computed for these content keys.

    One with NaN is not there: versions before this check kept whatever a model gave.
    """
    columns = tables.embeddings.c
    found: dict[str, bytes] = {}
    unique = list(dict.fromkeys(keys))
    for start in range(0, len(unique), _IN_BATCH):
        part, owner = unique[start : start + _IN_BATCH], columns.fingerprint == fingerprint
        query = by_keys(connection, [columns.content_key, columns.vector], owner, columns.content_key, part)
        found.update({row.content_key: row.vector for row in connection.execute(query)})
    return {key: raw for key, raw in found.items() if np.isfinite(np.frombuffer(raw, dtype="<f4")).all()}


def forget_vectors(connection: Connection, key: str) -> None:
    """Forget what any model has computed of one content."""
    columns, fingerprint = tables.embeddings.c, ""
    # From one fingerprint to the next: there are few, and the key begins with them.
    following = select(func.min(columns.fingerprint))
    while found := connection.scalar(following.where(columns.fingerprint > fingerprint)):
        fingerprint = found
        connection.execute(
            delete(tables.embeddings).where(columns.fingerprint == fingerprint, columns.content_key == key)
        )


def store_vectors(db: Database, fingerprint: str, computed: Mapping[str, bytes]) -> None:
    """Remember vectors; one that another worker stored meanwhile is kept."""
    if not computed:
        return
    with db.write() as connection:
        now = connection.scalar(select(db_now()))
        rows: list[dict[str, Any]] = [
            {"fingerprint": fingerprint, "content_key": key, "vector": vector, "created_at": now}
            for key, vector in computed.items()
        ]
        insert_or_ignore(connection, tables.embeddings, rows, key=("fingerprint", "content_key"))
