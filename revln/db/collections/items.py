"""The live items of a collection, read and changed a stretch of its log at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, select

from revln.db import tables
from revln.db.collections.filters import filter_clause
from revln.db.collections.log import LogEntry, append_log
from revln.errors import NotFound
from revln.jobs.filters import Filter

__all__ = ["Deleted", "delete_matching"]


@dataclass(frozen=True, slots=True)
class Deleted:
    """``last_seq``: how far the log was looked at; ``seq``: the last row that was appended, None if none was."""

    deleted: int
    last_seq: int
    seq: int | None


def _live(collection_id: str, after_seq: int, up_to_seq: int) -> Select[Any]:
    """Rows of the log that are an item's newest, in the log's order."""
    vectors, items = tables.vectors.c, tables.items.c
    return (
        select(vectors.seq, vectors.item_id)
        .join(
            tables.items,
            (items.collection_id == vectors.collection_id)
            & (items.item_id == vectors.item_id)
            & (items.seq == vectors.seq),
        )
        .where(vectors.collection_id == collection_id, vectors.seq > after_seq, vectors.seq <= up_to_seq)
        .order_by(vectors.seq)
    )


def delete_matching(
    connection: Connection, collection_id: str, wanted: Filter, after_seq: int, up_to_seq: int, limit: int
) -> Deleted:
    """Delete the next ``limit`` items whose newest row lies in this stretch of the log and passes.

    Raises:
        NotFound: the collection was deleted meanwhile.
    """
    collections, vectors = tables.collections.c, tables.vectors.c
    # Locked before it is read: what is replaced in between must not be deleted for what it was.
    locked = select(collections.id).where(collections.id == collection_id).with_for_update()
    if connection.execute(locked).one_or_none() is None:
        raise NotFound("The collection was deleted while the job ran.")
    query = _live(collection_id, after_seq, up_to_seq).limit(limit)
    rows = connection.execute(query.where(filter_clause(wanted, vectors.metadata, connection))).all()
    seqs = append_log(connection, collection_id, [LogEntry("delete", row.item_id) for row in rows])
    last = rows[-1].seq if len(rows) == limit else up_to_seq
    return Deleted(len(rows), last, seqs[-1] if seqs else None)
