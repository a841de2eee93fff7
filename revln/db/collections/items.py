"""The live items of a collection, found by their rows of the log and changed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, select

from revln.db import tables
from revln.db.collections.log import LogEntry, append_log
from revln.db.collections.order import begin_filter_delete, keep_tombstones, position_of
from revln.errors import NotFound

__all__ = ["Deleted", "begin_delete", "delete_matching"]


@dataclass(frozen=True, slots=True)
class Deleted:
    """``seq``: the last row that was appended, None if none was."""

    deleted: int
    seq: int | None


def _live(collection_id: str, seqs: Collection[int]) -> Select[Any]:
    """Those of the rows of the log that are an item's newest, in the log's order."""
    vectors, items = tables.vectors.c, tables.items.c
    return (
        select(vectors.seq, vectors.item_id, items.position)
        .join(
            tables.items,
            (items.collection_id == vectors.collection_id)
            & (items.item_id == vectors.item_id)
            & (items.seq == vectors.seq),
        )
        .where(vectors.collection_id == collection_id, vectors.seq.in_(seqs))
        .order_by(vectors.seq)
    )


def begin_delete(connection: Connection, collection_id: str, accepted: int | None, wanted: Any) -> int:
    """Begin to delete by a filter, given as JSON. Return the last row of the log that is to be looked at.

    What was accepted before the delete and is appended from now on is tested as it comes. Raises NotFound.
    """
    head_seq = _lock(connection, collection_id)
    begin_filter_delete(connection, collection_id, accepted, wanted)
    return head_seq


def delete_matching(
    connection: Connection, collection_id: str, seqs: Collection[int], accepted: int | None = None
) -> Deleted:
    """Delete the items whose newest rows are among these, a few thousand, which passed a filter.

    A row's metadata never changes, so what passed outside this transaction passes still. With ``accepted``, what jobs
    wrote that were accepted later stays.

    Raises:
        NotFound: the collection was deleted meanwhile.
    """
    # Locked before it is read: what is replaced in between must not be deleted for what it was.
    _lock(connection, collection_id)
    query = _live(collection_id, seqs)
    if accepted is not None:
        query = query.where(tables.items.c.position < position_of(accepted))
    rows = connection.execute(query).all()
    appended = append_log(connection, collection_id, [LogEntry("delete", row.item_id) for row in rows])
    keep_tombstones(connection, collection_id, {row.item_id: row.position for row in rows}, if_needed=True)
    return Deleted(len(rows), appended[-1] if appended else None)


def _lock(connection: Connection, collection_id: str) -> int:
    columns = tables.collections.c
    locked = select(columns.head_seq).where(columns.id == collection_id).with_for_update()
    head_seq = connection.scalar(locked)
    if head_seq is None:
        raise NotFound("The collection was deleted while the job ran.")
    return int(head_seq)
