"""Which of two changes of an item stands: that of the job that was accepted later, or of the later line of one job.

Chunks end in any order. So each change has a *position*: the place that its job was given when it was accepted, and its
own place in the job. An item keeps the position of the change that made it what it is; an earlier one that comes later
writes nothing. What must outlive an item that is gone is kept for as long as a job that was accepted before may still
write, now or after a retry:

- a *tombstone*, the position of the change that was the item's last one
- a *filter delete* that has begun: what was accepted before it and comes after it is tested by it as it comes

A delete by filter takes the items of earlier positions alone, and leaves each one's own position on its tombstone: it
says nothing about what the item may become by a change in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, exists, func, or_, select, text, true

from revln.db import bulk, tables
from revln.db.engine import Database
from revln.db.upsert import insert_or_ignore, insert_or_update
from revln.jobs.filters import Filter, matches, parse_filter

__all__ = ["Order", "begin_filter_delete", "keep_tombstones", "move_order", "position_of", "prune_order", "read_order"]

_PLACES = 2**32  # in a job; as many jobs of one tenant may be accepted before the positions pass 63 bits, by half
_END = 2**63 - 1

_C, _J = tables.collections.c, tables.jobs.c
_T, _F = tables.tombstones.c, tables.filter_deletes.c


def position_of(accepted: int | None, index: int = 0) -> int | None:
    """Return where a change stands; None of a job that was accepted by a version that kept no order."""
    return None if accepted is None else accepted * _PLACES + index


@dataclass(slots=True)
class Order:
    """What was known of some items of a collection when its row was locked."""

    positions: dict[str, int]  # of each item's last change
    filters: list[tuple[int, Filter]]  # begun, by the position before which they take all
    may_write_from: int | None  # the position of the earliest job that may still write; None: there is none
    open_from: int | None  # that of the earliest one that has not ended

    def superseded(self, item_id: str, position: int | None) -> bool:
        return position is not None and position < self.positions.get(item_id, 0)

    def swept(self, position: int | None, metadata: Mapping[str, Any] | None) -> bool:
        """Whether a delete by filter that was accepted later would have taken it."""
        return position is not None and any(
            position < before and matches(wanted, metadata or {}) for before, wanted in self.filters
        )

    def others_before(self, position: int | None) -> bool:
        """Tell whether another job, accepted before the one of this position, may still write, after a retry too."""
        return _is_before(self.may_write_from, position)

    def open_before(self, position: int | None) -> bool:
        """Tell whether such a job has not ended: an item that is not there may be on its way."""
        return _is_before(self.open_from, position)


def _is_before(first: int | None, position: int | None) -> bool:
    return position is not None and first is not None and first < position - position % _PLACES


def read_order(
    connection: Connection, collection_id: str, positions: dict[str, int], item_ids: list[str], first: int
) -> Order:
    """Read what a change of these items, of which none is before ``first``, must not undo.

    The caller holds the collection's row. ``positions`` are those of the items that are there; this one's is theirs,
    too.
    """
    for item_id, position in bulk.tombstones_of(connection, collection_id, item_ids):
        positions[item_id] = max(position, positions.get(item_id, 0))
    begun = select(_F.accepted, _F.filter).where(_F.collection_id == collection_id, _F.accepted > first // _PLACES)
    filters = [(row.accepted * _PLACES, parse_filter(row.filter)) for row in connection.execute(begun)]
    may_write, is_open = (_may_write_from(connection, collection_id, only_open=only) for only in (False, True))
    return Order(positions, filters, may_write, is_open)


def _may_write_from(connection: Connection, collection_id: str, *, only_open: bool = False) -> int | None:
    accepted = connection.scalar(
        select(func.min(_J.accepted)).where(
            text(tables.MAY_STILL_WRITE),
            _J.finished_at.is_(None) if only_open else true(),
            _J.tenant == select(_C.tenant).where(_C.id == collection_id).scalar_subquery(),
            _J.collection == select(_C.name).where(_C.id == collection_id).scalar_subquery(),
        )
    )
    return position_of(accepted)


def keep_tombstones(
    connection: Connection, collection_id: str, gone: Mapping[str, int], *, if_needed: bool = False
) -> None:
    """Remember the positions of items that are gone. The caller holds the collection's row.

    Args:
        if_needed: look first whether any job may still write that was accepted with one of them, or before it.
    """
    if if_needed and gone:
        first = _may_write_from(connection, collection_id)
        gone = {item_id: at for item_id, at in gone.items() if first is not None and first <= at}
    rows = [{"collection_id": collection_id, "item_id": one, "position": at} for one, at in gone.items()]
    insert_or_update(connection, tables.tombstones, rows, key=("collection_id", "item_id"))


def begin_filter_delete(connection: Connection, collection_id: str, accepted: int | None, wanted: Any) -> None:
    """Have what was accepted before and comes from now on be tested too. The caller holds the collection's row."""
    first = _may_write_from(connection, collection_id)
    if accepted is not None and first is not None and first < accepted * _PLACES:
        row = {"collection_id": collection_id, "accepted": accepted, "filter": wanted}
        insert_or_ignore(connection, tables.filter_deletes, [row], key=("collection_id", "accepted"))


def move_order(connection: Connection, from_id: str, to_id: str) -> None:
    """Give what is remembered to another generation of the collection."""
    for table in (tables.tombstones, tables.filter_deletes):
        # Left by a delete that found its collection moved.
        connection.execute(delete(table).where(table.c.collection_id == to_id))
        connection.execute(table.update().where(table.c.collection_id == from_id).values(collection_id=to_id))


def prune_order(db: Database, most: int) -> int:
    """Forget up to ``most`` of what no job may come before any more; how many."""
    kept = or_(exists().where(_T.collection_id == _C.id), exists().where(_F.collection_id == _C.id))
    with db.read() as connection:
        ids = list(connection.scalars(select(_C.id).where(kept)))
    removed = 0
    for collection_id in ids:
        if removed < most:
            with db.write() as connection:
                removed += _prune(connection, collection_id, most - removed)
    return removed


def _prune(connection: Connection, collection_id: str, most: int) -> int:
    first = _may_write_from(connection, collection_id)
    before = _END if first is None else first
    old = select(_T.item_id).where(_T.collection_id == collection_id, _T.position < before).limit(most)
    tombstones = delete(tables.tombstones).where(_T.collection_id == collection_id, _T.item_id.in_(old))
    passed = delete(tables.filter_deletes).where(
        _F.collection_id == collection_id, _F.accepted <= before // _PLACES
    )  # fmt: skip
    return connection.execute(tombstones).rowcount + connection.execute(passed).rowcount
