"""Generations of a collection: the same items embedded by different models, of which one serves.

Each is a row of ``collections`` with a log of its own; those that do not serve are its shadows:

- next: being made from the log of the one that serves; nobody searches it yet
- former: what served before the last migration, as it was then; jobs that were accepted for its model search it
- returning: a former one that is being caught up to serve again

Changing which one serves is one transaction under the row lock that every change of the collection takes, so no change
can fall between the two. There is one former generation at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, and_, insert, select, update
from uuid_utils.compat import uuid7

from revln.access import Caller
from revln.db import tables
from revln.db.access.audit import record
from revln.db.collections.collections import Collection, get_collection
from revln.db.collections.log import LogEntry, append_log
from revln.db.engine import db_now
from revln.db.jobs.read import OPEN, Job
from revln.db.keyed import in_index_order
from revln.db.retention import retire_collections
from revln.db.rows import columns_of, row_to
from revln.errors import CollectionMoved, Conflict, NotFound

__all__ = [
    "Changes",
    "Role",
    "begin_generation",
    "changes_after",
    "delete_generation",
    "follow",
    "generation_for",
    "lock_heads",
    "missing_items",
    "older_migration",
    "shadows_of",
    "swap",
]

_C = tables.collections.c
_COLUMNS = columns_of(tables.collections, Collection)


class Role(StrEnum):
    NEXT = "next"
    FORMER = "former"
    RETURNING = "returning"


@dataclass(frozen=True, slots=True)
class Changes:
    """What a stretch of the serving log leaves to be done: rows that are some item's newest, and ids that are gone."""

    live: list[dict[str, Any]]
    gone: list[str]
    last_seq: int
    whole: bool  # there is no more behind it


def shadows_of(connection: Connection, collection_id: str) -> list[Collection]:
    rows = connection.execute(select(*_COLUMNS).where(_C.shadow_of == collection_id).order_by(_C.created_at))
    return [row_to(Collection, row) for row in rows]


def generation_for(connection: Connection, tenant: str, name: str, fingerprint: str | None) -> Collection:
    """The generation whose vectors are of ``fingerprint`` and complete; else the one that serves. Raises NotFound."""
    serving = get_collection(connection, tenant, name)
    if serving.model_fingerprint == fingerprint:
        return serving
    kept = [one for one in shadows_of(connection, serving.id) if one.shadow_role != Role.NEXT]
    return next((one for one in kept if one.model_fingerprint == fingerprint), serving)


def begin_generation(connection: Connection, collection_id: str, model: str, fingerprint: str, dim: int) -> Collection:
    """The generation of this model that is to serve next: the one begun before, the former one, or a new one.

    Raises CollectionMoved: what was thought to serve does not.
    """
    serving = _lock_serving(connection, collection_id)
    shadows = shadows_of(connection, collection_id)
    for shadow in shadows:
        if shadow.model_fingerprint == fingerprint:
            if shadow.shadow_role == Role.FORMER:
                connection.execute(update(tables.collections).where(_C.id == shadow.id).values(shadow_role="returning"))
            return shadow
        if shadow.shadow_role == Role.NEXT:  # of a migration to another model that was given up
            retire_collections(connection, _C.id == shadow.id)
    identity = str(uuid7())
    connection.execute(
        insert(tables.collections).values(
            id=identity,
            tenant=serving.tenant,
            name=_hidden(identity),
            model=model,
            model_fingerprint=fingerprint,
            dim=dim,
            metadata=serving.metadata,
            created_at=db_now(),
            updated_at=db_now(),
            shadow_of=collection_id,
            shadow_role=Role.NEXT,
            shadow_seq=0,
        )
    )
    return row_to(Collection, connection.execute(select(*_COLUMNS).where(_C.id == identity)).one())


def older_migration(connection: Connection, job: Job) -> tuple[str, str] | None:
    """The model and the id of a migration of the same collection that was asked for before ``job`` and is not over."""
    jobs = tables.jobs.c
    row = connection.execute(
        select(jobs.model, jobs.id)
        .where(
            jobs.tenant == job.tenant,
            jobs.kind == job.kind,
            jobs.collection == job.collection,
            OPEN,
            jobs.input["operation"].as_string() == "migrate",
            jobs.id < job.id,
        )
        .order_by(jobs.id)
        .limit(1)
    ).one_or_none()
    return None if row is None else (row.model, row.id)


def _hidden(identity: str) -> str:
    return f"@{identity}"  # no name that a user could give


def _lock_serving(connection: Connection, collection_id: str) -> Collection:
    row = connection.execute(select(*_COLUMNS).where(_C.id == collection_id).with_for_update()).one_or_none()
    if row is None:
        raise NotFound("The collection was deleted while the job ran.")
    serving = row_to(Collection, row)
    if serving.shadow_of is not None:
        raise CollectionMoved(f"Another migration took the place of {serving.holds}.")
    return serving


def changes_after(connection: Connection, collection_id: str, after_seq: int, limit: int) -> Changes:
    """The next stretch of the log, without its vectors; what a later row makes void is left to that one."""
    vectors, items = tables.vectors.c, tables.items.c
    shown = [vectors.seq, vectors.op, vectors.item_id, vectors.content_key, vectors.text, vectors.metadata,
             vectors.image_sha256]  # fmt: skip
    # Bounded by seq, which has no gaps, and each item looked up by itself: no plan of these reads the whole log.
    live_seq = select(items.seq).where(items.collection_id == vectors.collection_id, items.item_id == vectors.item_id)
    rows = connection.execute(
        select(*shown, live_seq.scalar_subquery().label("live_seq"))
        .where(vectors.collection_id == collection_id, vectors.seq > after_seq, vectors.seq <= after_seq + limit)
        .order_by(vectors.seq)
    ).all()
    return Changes(
        live=[dict(row._mapping) for row in rows if row.seq == row.live_seq],
        gone=[row.item_id for row in rows if row.op == "delete" and row.live_seq is None],
        last_seq=rows[-1].seq if rows else after_seq,
        whole=len(rows) < limit,
    )


def follow(connection: Connection, shadow: Collection, entries: Sequence[LogEntry], from_seq: int, to_seq: int) -> None:
    """Append to a shadow what the serving log says from one row to another.

    Raises CollectionMoved: another worker has done so, or it is no shadow any more.
    """
    moved = connection.execute(
        update(tables.collections)
        .where(_C.id == shadow.id, _C.shadow_of == shadow.shadow_of, _C.shadow_seq == from_seq)
        .values(shadow_seq=to_seq)
    )
    if not moved.rowcount:
        raise CollectionMoved("Another migration of this collection is at work.")
    append_log(connection, shadow.id, entries, shadow=True)


def lock_heads(connection: Connection, shadow: Collection) -> tuple[Collection, Collection]:
    """The serving generation, locked, and its shadow, both as they are now. Raises NotFound, CollectionMoved."""
    assert shadow.shadow_of is not None
    serving = _lock_serving(connection, shadow.shadow_of)
    row = connection.execute(select(*_COLUMNS).where(_C.id == shadow.id)).one_or_none()
    if row is None or row.shadow_of != serving.id:
        raise CollectionMoved("Another migration of this collection is at work.")
    return serving, row_to(Collection, row)


def missing_items(
    connection: Connection, shadow: Collection, limit: int, after_id: str | None = None
) -> list[dict[str, Any]]:
    """Live items that a shadow does not have, in the order of their ids."""
    in_index_order(connection)
    vectors, items, theirs = tables.vectors.c, tables.items.c, tables.items.alias("theirs")
    query = (
        select(vectors.item_id, vectors.content_key, vectors.text, vectors.metadata, vectors.image_sha256)
        .join(tables.items, and_(items.collection_id == vectors.collection_id, items.seq == vectors.seq))
        .outerjoin(theirs, and_(theirs.c.collection_id == shadow.id, theirs.c.item_id == items.item_id))
        .where(items.collection_id == shadow.shadow_of, theirs.c.item_id.is_(None))
        .order_by(items.item_id)
        .limit(limit)
    )
    if after_id is not None:
        query = query.where(items.item_id > after_id)
    return [dict(row._mapping) for row in connection.execute(query)]


def swap(connection: Connection, serving: Collection, shadow: Collection) -> None:
    """Let a shadow serve, which holds all that the locked ``serving`` does; that one becomes the former generation."""
    assert shadow.shadow_seq == serving.head_seq
    retire_collections(connection, _C.shadow_of == serving.id, _C.id != shadow.id)
    connection.execute(
        update(tables.collections)
        .where(_C.id == serving.id)
        .values(
            name=_hidden(serving.id),
            shadow_of=shadow.id,
            shadow_role=Role.FORMER,
            shadow_seq=shadow.head_seq,
        )
    )
    connection.execute(
        update(tables.collections)
        .where(_C.id == shadow.id)
        .values(
            name=serving.name,
            metadata=serving.metadata,
            created_at=serving.created_at,
            updated_at=db_now(),
            shadow_of=None,
            shadow_role=None,
            shadow_seq=None,
        )
    )


def delete_generation(connection: Connection, by: Caller, name: str, role: Role) -> None:
    """Let a generation be gone that does not serve; its log is removed later. Raises NotFound, Conflict."""
    serving = get_collection(connection, by.tenant, name)
    found = next((one for one in shadows_of(connection, serving.id) if one.shadow_role == role), None)
    if found is None:
        raise NotFound(f"Collection {name!r} has no {role} generation.")
    if not retire_collections(connection, _C.id == found.id, _C.shadow_of.is_not(None), _C.shadow_role == role):
        raise Conflict(f"The {role} generation of collection {name!r} has just come into use.")
    record(connection, by, "generation.delete", f"{name} ({role})")
