"""A collection's log: every change is a row with a gapless ``seq``, taken under the collection's row lock.

So the order of commits is the order of ``seq``, and whoever has read up to a row has seen all before it.
``replaces_seq`` names the row that a change makes void: a reader needs no map from item ids to rows.

Rows go in and out by the hundred thousand, so they pass SQLAlchemy by (`revln.db.bulk`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select, update

from revln.db import bulk, tables
from revln.db.collections.order import Order, keep_tombstones, read_order
from revln.db.engine import db_now
from revln.errors import CollectionMoved, NotFound

__all__ = ["SUPERSEDED", "LogEntry", "LogPage", "append_log", "head_seq", "newest_seqs", "read_log", "read_vectors"]

_COLUMNS = (
    "collection_id", "seq", "op", "item_id", "replaces_seq", "content_key", "vector", "text", "metadata",
    "image_sha256", "created_at",
)  # fmt: skip


SUPERSEDED = 0  # in the place of a change's ``seq``: a later change of the item was written before it


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One change to be appended: an upsert with its unit-norm (D,) vector, or a delete."""

    op: str
    item_id: str
    vector: bytes | None = None
    content_key: str | None = None
    text: str | None = None
    metadata: dict[str, Any] | None = None
    image_sha256: str | None = None
    position: int | None = None  # in the order of changes (`revln.db.collections.order`); None: after all others


@dataclass(frozen=True, slots=True)
class LogPage:
    """A stretch of the log: vectors to add under their ``seqs``, and the ``seqs`` that they make void."""

    seqs: NDArray[np.int64]  # (N,)
    vectors: NDArray[np.float32]  # (N, D)
    void: NDArray[np.int64]  # (M,)
    head_seq: int


def append_log(
    connection: Connection, collection_id: str, entries: Sequence[LogEntry], *, shadow: bool = False
) -> list[int | None]:
    """Append changes inside the caller's transaction; the ``seq`` of each, None for a delete of what is not there.

    An id that comes twice is applied in order: the later entry replaces the earlier one. An entry with a ``position``
    writes nothing if a change of a later position was there before it; its ``seq`` is SUPERSEDED.

    Args:
        shadow: the log is of a generation that does not serve (`revln.db.collections.generations`), which only
            a migration writes.

    Raises:
        NotFound: the collection was deleted meanwhile.
        CollectionMoved: it serves though it should not, or the other way round: a migration came in between.
    """
    head = _lock(connection, collection_id)
    if (head.shadow_of is not None) != shadow:
        raise CollectionMoved
    seq, count, now = int(head.head_seq), int(head.live), head.now
    before, order = _order(connection, collection_id, [] if shadow else entries, {entry.item_id for entry in entries})
    live: dict[str, int | None] = dict(before)
    gone: dict[str, int] = {}
    rows: list[tuple[Any, ...]] = []
    seqs: list[int | None] = []
    for entry in entries:
        item_id, replaced = entry.item_id, live.get(entry.item_id)
        if not shadow and order.superseded(item_id, entry.position):
            seqs.append(SUPERSEDED)
            continue
        swept = not shadow and entry.op == "upsert" and order.swept(entry.position, entry.metadata)
        early = entry.op == "delete" and order.others_before(entry.position)
        if entry.position is not None:
            order.positions[item_id] = entry.position
            gone.pop(item_id, None)
            if swept or early:
                gone[item_id] = entry.position
        on_its_way = early and order.open_before(entry.position)
        if replaced is None and (swept or (entry.op == "delete" and not on_its_way)):
            seqs.append(SUPERSEDED if swept else None)
            continue
        seq += 1
        seqs.append(SUPERSEDED if swept else seq)
        written = LogEntry("delete", item_id) if swept else entry
        rows.append(
            (
                collection_id, seq, written.op, item_id, replaced, written.content_key, written.vector, written.text,
                written.metadata, written.image_sha256, now,
            )
        )  # fmt: skip
        count += (written.op == "upsert") - (replaced is not None)
        live[item_id] = seq if written.op == "upsert" else None
    keep_tombstones(connection, collection_id, gone)
    if rows:
        bulk.insert(connection, tables.vectors, _COLUMNS, rows)
        _write_live(connection, collection_id, before, live, order)
        connection.execute(
            update(tables.collections)
            .where(tables.collections.c.id == collection_id)
            .values(head_seq=seq, count=count, updated_at=now)
        )
    return seqs


def _lock(connection: Connection, collection_id: str) -> Any:
    columns = tables.collections.c
    head = connection.execute(
        select(columns.head_seq, columns["count"].label("live"), columns.shadow_of, db_now().label("now"))
        .where(columns.id == collection_id)
        .with_for_update()
    ).one_or_none()
    if head is None:
        raise NotFound("The collection was deleted while the job ran.")
    return head


def _order(
    connection: Connection, collection_id: str, ordered: Sequence[LogEntry], item_ids: set[str]
) -> tuple[dict[str, int], Order]:
    """The live rows of the items, and what is known of their order."""
    found = bulk.live_items(connection, collection_id, list(item_ids))
    before = {item_id: seq for item_id, seq, _ in found}
    positions = {item_id: position for item_id, _, position in found}
    placed = [entry.position for entry in ordered if entry.position is not None]
    if not placed:
        return before, Order(positions, [], None, None)
    return before, read_order(connection, collection_id, positions, list(item_ids), min(placed))


def _write_live(
    connection: Connection, collection_id: str, before: dict[str, int], live: dict[str, int | None], order: Order
) -> None:
    """Bring ``items`` to the state after the changes. Nobody else writes them: the collection's row is locked."""
    at = order.positions
    new = [(collection_id, item, seq, at.get(item, 0)) for item, seq in live.items()
           if seq is not None and item not in before]  # fmt: skip
    moved = [(seq, at.get(item, 0), collection_id, item) for item, seq in live.items()
             if seq is not None and item in before and before[item] != seq]  # fmt: skip
    bulk.insert(connection, tables.items, ("collection_id", "item_id", "seq", "position"), new)
    bulk.move_items(connection, moved)
    bulk.delete_items(connection, collection_id, [item for item in before if live[item] is None])


def read_log(connection: Connection, collection_id: str, after_seq: int, dim: int, limit: int = 5_000) -> LogPage:
    """The next stretch of the log; an empty page when there is no more."""
    found = bulk.log_after(connection, collection_id, after_seq, limit)
    if not found:
        empty = np.empty(0, dtype=np.int64)
        return LogPage(empty, np.empty((0, dim), dtype=np.float32), empty, after_seq)
    seqs, replaced, vectors = zip(*found, strict=True)
    added = seqs if None not in vectors else [seq for seq, _, vector in found if vector is not None]
    raw = b"".join(vectors if None not in vectors else [vector for vector in vectors if vector is not None])
    return LogPage(
        seqs=np.array(added, dtype=np.int64),
        vectors=np.frombuffer(raw, dtype="<f4").reshape(len(added), dim),
        void=np.array([seq for seq in replaced if seq is not None], dtype=np.int64),
        head_seq=seqs[-1],
    )


def read_vectors(
    connection: Connection, collection_id: str, seqs: NDArray[np.int64], dim: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Those of the rows that are there and hold a vector: their seqs, ascending, and their (M, D) vectors."""
    found = bulk.vectors_at(connection, collection_id, seqs.tolist())
    if not found:
        return np.empty(0, dtype=np.int64), np.empty((0, dim), dtype=np.float32)
    there, vectors = zip(*found, strict=True)
    return np.array(there, dtype=np.int64), np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(there), dim)


def head_seq(connection: Connection, collection_id: str) -> int:
    """The last row of the log. Raises NotFound: the collection was deleted."""
    columns = tables.collections.c
    head = connection.scalar(select(columns.head_seq).where(columns.id == collection_id))
    if head is None:
        raise NotFound("The collection was deleted meanwhile.")
    return int(head)


def newest_seqs(connection: Connection, collection_id: str) -> NDArray[np.int64]:
    """The rows of the log that are some item's newest, ascending."""
    found = np.fromiter(bulk.item_seqs(connection, collection_id), dtype=np.int64)
    found.sort()
    return found
