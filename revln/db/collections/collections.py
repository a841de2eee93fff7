"""Collections, and the items that are in them now. What made them so is in their log (`revln.db.collections.log`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError
from uuid_utils.compat import uuid7

from revln.access import Caller
from revln.db import bulk, tables
from revln.db.access.audit import record
from revln.db.collections.filters import filter_clause
from revln.db.engine import Database, db_now
from revln.db.keyed import by_keys, in_index_order
from revln.db.retention import retire_collections
from revln.db.rows import columns_of, row_to
from revln.errors import Conflict, NotFound
from revln.jobs.filters import Filter

__all__ = [
    "Collection",
    "collection_ids",
    "create_collection",
    "delete_collection",
    "get_collection",
    "item_vectors",
    "list_collections",
    "list_items",
    "live_seqs",
    "matching_seqs",
    "rows_by_seq",
]

_IN_BATCH = 500  # values in one IN (…); SQLite's own limit is far higher, its planner is happier here

_FEW = 64  # items with their vectors that are held at once while they are paged


@dataclass(frozen=True, slots=True)
class Collection:
    """One row of ``collections``. ``count`` is of live items, ``head_seq`` of log rows.

    One that holds the user's own vectors has no model: "".
    """

    id: str
    tenant: str
    name: str
    model: str
    model_fingerprint: str
    dim: int
    head_seq: int
    count: int
    metadata: dict[str, Any]
    created_at: float
    updated_at: float
    snapshot_id: str | None = None
    shadow_of: str | None = None
    shadow_role: str | None = None
    shadow_seq: int | None = None

    @property
    def has_model(self) -> bool:
        return bool(self.model)

    @property
    def holds(self) -> str:
        """In words."""
        made_by = f"vectors of {self.model} ({self.model_fingerprint})" if self.has_model else "your own vectors"
        return f"{made_by} of {self.dim} dimensions"


_COLUMNS = columns_of(tables.collections, Collection)


def create_collection(
    db: Database, by: Caller, name: str, model: str, fingerprint: str, dim: int, metadata: dict[str, Any]
) -> tuple[Collection, bool]:
    """Make a collection, or find the one of that name; the collection, and whether it is new.

    Without a ``model`` ("") it is for the user's own vectors, whose fingerprint says no more than their length.
    Raises Conflict if the name is taken by a collection of another model.
    """
    identity: UUID = uuid7()
    try:
        with db.write() as connection:
            connection.execute(
                insert(tables.collections).values(
                    id=str(identity),
                    tenant=by.tenant,
                    name=name,
                    model=model,
                    model_fingerprint=fingerprint,
                    dim=dim,
                    metadata=metadata,
                    created_at=db_now(),
                    updated_at=db_now(),
                )
            )
            record(connection, by, "collection.create", name)
            return get_collection(connection, by.tenant, name), True
    except IntegrityError:
        with db.read() as connection:
            known = get_collection(connection, by.tenant, name)
        if known.model_fingerprint != fingerprint:
            wanted = f"model {model} ({fingerprint})" if model else f"{dim} dimensions of your own"
            exists = f"model {known.model} ({known.model_fingerprint})" if known.has_model else known.holds
            raise Conflict(
                f"Collection {name!r} exists with {exists}, not {wanted}. Use another name, or delete it first."
            ) from None
        return known, False


def get_collection(connection: Connection, tenant: str, name: str) -> Collection:
    """Raises NotFound."""
    columns = tables.collections.c
    row = connection.execute(select(*_COLUMNS).where(columns.tenant == tenant, columns.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"There is no collection {name!r}. PUT /v1/collections/{name} makes one.")
    return row_to(Collection, row)


def list_collections(connection: Connection, tenant: str) -> list[Collection]:
    """Those that serve, by name."""
    columns = tables.collections.c
    serving = (columns.tenant == tenant, columns.shadow_of.is_(None))
    rows = connection.execute(select(*_COLUMNS).where(*serving).order_by(columns.name))
    return [row_to(Collection, row) for row in rows]


def collection_ids(connection: Connection) -> set[str]:
    """Of every generation of every collection."""
    return set(connection.scalars(select(tables.collections.c.id)))


def delete_collection(db: Database, by: Caller, name: str) -> None:
    """Let a collection be gone with its other generations; their logs are removed later. Raises NotFound."""
    columns = tables.collections.c
    with db.write() as connection:
        # Locked: a migration that lets another generation serve must come before or after.
        this = (columns.tenant == by.tenant, columns.name == name)
        found = connection.scalar(select(columns.id).where(*this).with_for_update())
        if found is None:
            raise NotFound(f"There is no collection {name!r}.")
        retire_collections(connection, (columns.id == found) | (columns.shadow_of == found))
        record(connection, by, "collection.delete", name)


def live_seqs(connection: Connection, collection_id: str, item_ids: Sequence[str]) -> dict[str, int | None]:
    """The row of the log that holds each item now; ids that are not there are left out."""
    columns = tables.items.c
    live: dict[str, int | None] = {}
    unique = list(dict.fromkeys(item_ids))
    for start in range(0, len(unique), _IN_BATCH):
        part = unique[start : start + _IN_BATCH]
        owner = columns.collection_id == collection_id
        query = by_keys(connection, [columns.item_id, columns.seq], owner, columns.item_id, part)
        live.update({row.item_id: row.seq for row in connection.execute(query)})
    return live


def rows_by_seq(connection: Connection, collection_id: str, seqs: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What a search shows of the rows that it found."""
    columns = tables.vectors.c
    shown = [columns.seq, columns.item_id, columns.text, columns.metadata, columns.image_sha256]
    found: dict[int, dict[str, Any]] = {}
    unique = list(dict.fromkeys(seqs))
    for start in range(0, len(unique), _IN_BATCH):
        part = unique[start : start + _IN_BATCH]
        query = by_keys(connection, shown, columns.collection_id == collection_id, columns.seq, part)
        found.update({row.seq: dict(row._mapping) for row in connection.execute(query)})
    return found


def matching_seqs(
    connection: Connection, collection_id: str, wanted: Filter, after_seq: int
) -> tuple[NDArray[np.int64], int]:
    """The rows past ``after_seq`` whose metadata passes, in order, void ones included; and the last row looked at.

    What a live row says never changes, so whoever keeps the answer need only ask for the rows that came since.
    """
    columns = tables.vectors.c
    head = connection.scalar(select(tables.collections.c.head_seq).where(tables.collections.c.id == collection_id))
    if head is None:
        return np.empty(0, dtype=np.int64), after_seq
    query = (
        select(columns.seq)
        .where(
            columns.collection_id == collection_id,
            columns.seq > after_seq,
            columns.seq <= head,
            columns.op == "upsert",
            filter_clause(wanted, columns.metadata, connection),
        )
        .order_by(columns.seq)
    )
    return np.fromiter(connection.execution_options(yield_per=10_000).scalars(query), dtype=np.int64), int(head)


def item_vectors(connection: Connection, collection_id: str, item_ids: Sequence[str]) -> dict[str, bytes]:
    """The live vectors of items by id; ids that are not there are left out."""
    of_seq = {seq: item for item, seq in live_seqs(connection, collection_id, item_ids).items() if seq is not None}
    return {of_seq[seq]: vector for seq, vector in bulk.vectors_at(connection, collection_id, list(of_seq))}


def list_items(
    connection: Connection,
    collection_id: str,
    limit: int,
    after_id: str | None = None,
    *,
    wanted: Filter | None = None,
    with_vectors: bool = False,
) -> Iterator[dict[str, Any]]:
    """Live items in the order of their ids, read a few at a time: one may have 100 kB, and as much of vector."""
    in_index_order(connection)
    vectors, items = tables.vectors.c, tables.items.c
    shown = [items.item_id, items.seq, vectors.text, vectors.metadata, vectors.image_sha256]
    query = (
        select(*shown, *([vectors.vector] if with_vectors else []))
        .join(tables.vectors, (vectors.collection_id == items.collection_id) & (vectors.seq == items.seq))
        .where(items.collection_id == collection_id)
        .order_by(items.item_id)
        .limit(limit)
    )
    if after_id is not None:
        query = query.where(items.item_id > after_id)
    if wanted is not None:
        query = query.where(filter_clause(wanted, vectors.metadata, connection))
    with connection.execute(query, execution_options={"yield_per": _FEW}) as rows:
        for row in rows:
            yield dict(row._mapping)
