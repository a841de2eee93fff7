"""The live items of a collection, found by their rows of the log and changed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, select

from revln.db import tables
from revln.db.collections.log import LogEntry, append_log
from revln.errors import NotFound

__all__ = ["Deleted", "delete_matching"]


@dataclass(frozen=True, slots=True)
class Deleted:
    """``seq``: the last row that was appended, None if none was."""

    deleted: int
    seq: int | None


def _live(collection_id: str, seqs: Collection[int]) -> Select[Any]:
    """Those of the rows of the log that are an item's newest, in the log's order."""
    vectors, items = tables.vectors.c, tables.items.c
    return (
        select(vectors.seq, vectors.item_id)
        .join(
            tables.items,
            (items.collection_id == vectors.collection_id)
            & (items.item_id == vectors.item_id)
            & (items.seq == vectors.seq),
        )
        .where(vectors.collection_id == collection_id, vectors.seq.in_(seqs))
        .order_by(vectors.seq)
    )


def delete_matching(connection: Connection, collection_id: str, seqs: Collection[int]) -> Deleted:
    """Delete the items whose newest rows are among these, a few thousand, which passed a filter.

    A row's metadata never changes, so what passed outside this transaction passes still.

    Raises:
        NotFound: the collection was deleted meanwhile.
    """
    collections = tables.collections.c
    # Locked before it is read: what is replaced in between must not be deleted for what it was.
    locked = select(collections.id).where(collections.id == collection_id).with_for_update()
    if connection.execute(locked).one_or_none() is None:
        raise NotFound("The collection was deleted while the job ran.")
    rows = connection.execute(_live(collection_id, seqs)).all()
    appended = append_log(connection, collection_id, [LogEntry("delete", row.item_id) for row in rows])
    return Deleted(len(rows), appended[-1] if appended else None)
