"""Snapshots: one builder at a time under a lease, published by one conditional update, kept for rollback, pruned.

A builder's row is its lease, and its id is the fence: who finds it gone has lost, and publishes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update
from uuid_utils.compat import uuid7

from revln.access import Caller
from revln.db import tables
from revln.db.access.audit import record
from revln.db.collections.collections import Collection, get_collection
from revln.db.engine import Database, db_now
from revln.db.rows import columns_of, row_to
from revln.errors import Conflict, LeaseLost, NotFound

__all__ = [
    "Made",
    "Snapshot",
    "SnapshotState",
    "abandon_build",
    "begin_build",
    "current_snapshot",
    "delete_snapshot",
    "is_referenced",
    "list_snapshots",
    "long_tails",
    "publish",
    "renew_build",
    "roll_back",
    "set_damaged",
]


class SnapshotState(StrEnum):
    BUILDING = "building"
    READY = "ready"
    DAMAGED = "damaged"  # its file was missing or another; the row stays to be seen until it is pruned


@dataclass(frozen=True, slots=True)
class Made:
    """What a builder made; its file is in the blob store under ``sha256``."""

    type: str
    factory: str
    parameters: dict[str, Any]
    up_to_seq: int
    count: int
    sha256: str
    size_bytes: int
    recall: float
    qps: float
    exact_qps: float
    build_s: float


@dataclass(frozen=True, slots=True)
class Snapshot(Made):
    """One that was published."""

    id: str
    collection_id: str
    state: SnapshotState
    created_at: float


_TABLE = tables.snapshots
_COLUMNS = columns_of(_TABLE, Snapshot)


def begin_build(db: Database, collection_id: str, owner: str, lease_s: float) -> str | None:
    """Become the collection's builder: the id of the new snapshot, or None while another owner's lease holds.

    An ``owner`` (a job) that comes again takes over from itself: its own fence has shut out whoever it was before.

    Raises:
        NotFound: the collection was deleted.
    """
    identity: UUID = uuid7()
    building = and_(_TABLE.c.collection_id == collection_id, _TABLE.c.state == SnapshotState.BUILDING)
    with db.write() as connection:
        _lock(connection, collection_id)
        gone = or_(_TABLE.c.lease_until < db_now(), _TABLE.c.owner == owner)
        connection.execute(delete(_TABLE).where(building, gone))
        if connection.scalar(select(func.count()).select_from(_TABLE).where(building)):
            return None
        connection.execute(
            insert(_TABLE).values(
                id=str(identity),
                collection_id=collection_id,
                state=SnapshotState.BUILDING,
                owner=owner,
                lease_until=db_now() + lease_s,
                created_at=db_now(),
            )
        )
    return str(identity)


def renew_build(db: Database, snapshot_id: str, lease_s: float) -> None:
    """Stay the builder. Raises LeaseLost: another one is, or the collection is gone."""
    with db.write() as connection:
        renewed = connection.execute(
            update(_TABLE).where(_is_building(snapshot_id)).values(lease_until=db_now() + lease_s)
        )
    if not renewed.rowcount:
        raise LeaseLost(_LOST.format(snapshot_id))


def abandon_build(db: Database, snapshot_id: str) -> None:
    """Let another one build."""
    with db.write() as connection:
        connection.execute(delete(_TABLE).where(_is_building(snapshot_id)))


def publish(connection: Connection, collection_id: str, snapshot_id: str, made: Made, keep: int) -> Snapshot:
    """Make a built snapshot the one that is served, and forget those beyond the ``keep`` newest.

    Raises:
        NotFound: the collection was deleted.
        LeaseLost: another builder has taken over; nothing was written.
    """
    _lock(connection, collection_id)
    values = {field.name: getattr(made, field.name) for field in fields(Made)}
    row = connection.execute(
        update(_TABLE)
        .where(_is_building(snapshot_id))
        .values(**values, state=SnapshotState.READY, lease_until=None)
        .returning(*_COLUMNS)
    ).one_or_none()
    if row is None:
        raise LeaseLost(_LOST.format(snapshot_id))
    _serve(connection, collection_id, snapshot_id)
    _prune(connection, collection_id, keep)
    return row_to(Snapshot, row)


def _prune(connection: Connection, collection_id: str, keep: int) -> None:
    """The files of those that go are collected later (`worker.housekeeping`): another row may name the same bytes."""
    older = connection.scalars(
        select(_TABLE.c.id)
        .where(_TABLE.c.collection_id == collection_id, _TABLE.c.state != SnapshotState.BUILDING)
        .order_by(_TABLE.c.id.desc())
        .offset(keep)
    ).all()
    served = select(tables.collections.c.snapshot_id).where(tables.collections.c.id == collection_id)
    connection.execute(delete(_TABLE).where(_TABLE.c.id.in_(older), _TABLE.c.id != served.scalar_subquery()))


def current_snapshot(connection: Connection, collection_id: str) -> Snapshot | None:
    """The one that is served now, if any."""
    row = connection.execute(
        select(*_COLUMNS)
        .join(tables.collections, tables.collections.c.snapshot_id == _TABLE.c.id)
        .where(tables.collections.c.id == collection_id)
    ).one_or_none()
    return None if row is None else row_to(Snapshot, row)


def list_snapshots(connection: Connection, collection_id: str) -> list[Snapshot]:
    """Those that were published, newest first."""
    rows = connection.execute(
        select(*_COLUMNS)
        .where(_TABLE.c.collection_id == collection_id, _TABLE.c.state != SnapshotState.BUILDING)
        .order_by(_TABLE.c.id.desc())
    )
    return [row_to(Snapshot, row) for row in rows]


def roll_back(db: Database, collection_id: str, to: str | None, by: Caller) -> Snapshot:
    """Serve a given snapshot again, or the one before the current one.

    Raises:
        NotFound: there is no such snapshot, or no such collection.
        Conflict: it is damaged, or there is none before the current one.
    """
    with db.write() as connection:
        current = _lock(connection, collection_id)
        of_this = _TABLE.c.collection_id == collection_id
        if to is None:
            found = _newest_before(connection, collection_id, current)
            if found is None:
                raise Conflict("There is no good snapshot before the current one to go back to. GET …/snapshots lists.")
            to = found
        row = connection.execute(select(*_COLUMNS).where(of_this, _TABLE.c.id == to)).one_or_none()
        if row is None or row.state == SnapshotState.BUILDING:
            raise NotFound(f"The collection has no snapshot {to!r}. GET …/snapshots lists those that are kept.")
        if row.state != SnapshotState.READY:
            raise Conflict(f"Snapshot {to} is {row.state}; only one that is ready can be served. Build a new one.")
        _serve(connection, collection_id, to)
        name = connection.scalar(select(tables.collections.c.name).where(tables.collections.c.id == collection_id))
        record(connection, by, "collection.rollback", f"{name} to {to}")
        return row_to(Snapshot, row)


def delete_snapshot(db: Database, collection_id: str, snapshot_id: str, by: Caller) -> None:
    """Forget one that is not served; its file is collected later.

    Raises:
        NotFound: there is no such snapshot, or no such collection.
        Conflict: it is the one that is served.
    """
    with db.write() as connection:
        if _lock(connection, collection_id) == snapshot_id:
            raise Conflict(f"Snapshot {snapshot_id} is served. Build a new one or roll back, then delete it.")
        gone = delete(_TABLE).where(_TABLE.c.id == snapshot_id, _TABLE.c.collection_id == collection_id)
        if not connection.execute(gone.where(_TABLE.c.state != SnapshotState.BUILDING)).rowcount:
            raise NotFound(
                f"The collection has no snapshot {snapshot_id!r}. GET …/snapshots lists those that are kept."
            )
        name = connection.scalar(select(tables.collections.c.name).where(tables.collections.c.id == collection_id))
        record(connection, by, "snapshot.delete", f"{name} {snapshot_id}")


def set_damaged(db: Database, snapshot: Snapshot) -> bool:
    """Serve no one from a snapshot whose file is not what it was; whether the caller is the first to say so.

    The newest good one before it takes its place if it was the current one, else none: the log is enough.
    """
    with db.write() as connection:
        try:
            current = _lock(connection, snapshot.collection_id)
        except NotFound:
            return False
        marked = connection.execute(
            update(_TABLE)
            .where(_TABLE.c.id == snapshot.id, _TABLE.c.state == SnapshotState.READY)
            .values(state=SnapshotState.DAMAGED)
        )
        if not marked.rowcount:
            return False
        if current == snapshot.id:
            _serve(connection, snapshot.collection_id, _newest_before(connection, snapshot.collection_id, current))
        return True


def long_tails(connection: Connection, least: int, share: float) -> list[tuple[Collection, str | None]]:
    """Collections whose log has ``least`` rows past their newest good snapshot, and ``share`` of what is in that one;
    each with that snapshot's id. One that was rolled back is not built again for that.
    """
    newest = (
        select(_TABLE.c.collection_id, func.max(_TABLE.c.id).label("id"))
        .where(_TABLE.c.state == SnapshotState.READY)
        .group_by(_TABLE.c.collection_id)
        .subquery()
    )
    columns = tables.collections.c
    tail = columns.head_seq - func.coalesce(_TABLE.c.up_to_seq, 0)
    rows = connection.execute(
        select(columns.tenant, columns.name, newest.c.id)
        .join(newest, newest.c.collection_id == columns.id, isouter=True)
        .join(_TABLE, _TABLE.c.id == newest.c.id, isouter=True)
        .where(columns.shadow_of.is_(None))
        .where(columns["count"] > 0, tail >= least, tail >= share * func.coalesce(_TABLE.c["count"], 0))
    ).all()
    return [(get_collection(connection, row.tenant, row.name), row.id) for row in rows]


def is_referenced(connection: Connection, sha256: str) -> bool:
    """Whether some snapshot's file is this one."""
    return connection.scalar(select(func.count()).select_from(_TABLE).where(_TABLE.c.sha256 == sha256)) != 0


_LOST = "Snapshot {} is no longer ours to build: another builder has taken over, or its collection is gone."


def _lock(connection: Connection, collection_id: str) -> str | None:
    """Hold the collection's row; the snapshot that it is served from. Raises NotFound."""
    columns = tables.collections.c
    row = connection.execute(
        select(columns.snapshot_id).where(columns.id == collection_id).with_for_update()
    ).one_or_none()
    if row is None:
        raise NotFound("The collection was deleted meanwhile.")
    current: str | None = row.snapshot_id
    return current


def _is_building(snapshot_id: str) -> Any:
    return and_(_TABLE.c.id == snapshot_id, _TABLE.c.state == SnapshotState.BUILDING)


def _serve(connection: Connection, collection_id: str, snapshot_id: str | None) -> None:
    connection.execute(
        update(tables.collections).where(tables.collections.c.id == collection_id).values(snapshot_id=snapshot_id)
    )


def _newest_before(connection: Connection, collection_id: str, snapshot_id: str | None) -> str | None:
    if snapshot_id is None:
        return None
    found: str | None = connection.scalar(
        select(func.max(_TABLE.c.id)).where(
            _TABLE.c.collection_id == collection_id,
            _TABLE.c.state == SnapshotState.READY,
            _TABLE.c.id < snapshot_id,
        )
    )
    return found
