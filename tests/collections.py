"""Collections of own vectors, and what a search of them must find."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from revln.blobs import BlobStore
from revln.db.collections import Collection, create_collection, get_collection
from revln.db.engine import Database
from revln.db.log import LogEntry, append_log
from revln.db.results import vectors_to_bytes
from revln.db.snapshots import Snapshot, begin_build, publish
from worker.building import Order, build_snapshot

__all__ = ["Contents", "brute_force", "build", "clustered", "make_collection", "nobody", "order_of", "read", "write"]

Contents = dict[str, NDArray[np.float32]]  # item id → vector: what a collection should hold


def clustered(rows: int, dim: int, seed: int, clusters: int = 40) -> NDArray[np.float32]:
    """(rows, dim) unit vectors around random centres, as embeddings lie."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((clusters, dim))
    vectors = centres[random.integers(0, clusters, rows)] + 0.6 * random.standard_normal((rows, dim))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def make_collection(db: Database, dim: int, name: str = "c") -> Collection:
    return create_collection(db, name, "", f"vectors-{dim}", dim, {})[0]


def read(db: Database, name: str = "c") -> Collection:
    with db.read() as connection:
        return get_collection(connection, name)


def write(db: Database, collection: Collection, changes: dict[str, NDArray[np.float32] | None]) -> None:
    """Upsert; None deletes."""
    entries = [
        LogEntry("delete", item_id) if vector is None else LogEntry("upsert", item_id, vector=vectors_to_bytes(vector))
        for item_id, vector in changes.items()
    ]
    with db.write() as connection:
        append_log(connection, collection.id, entries)


def order_of(collection: Collection, type: str | None = None, **changes: Any) -> Order:
    values: dict[str, Any] = {"flat_rows": 1_000, "memory_bytes": 2**30, "recall": 0.9, "type": type, **changes}
    return Order(collection.id, collection.dim, **values)


def nobody(step: str) -> None:
    """Hears of a build's steps."""


def build(
    db: Database, blobs: BlobStore, collection: Collection, type: str | None = None, *, keep: int = 3, **changes: Any
) -> Snapshot:
    """Build and publish, as the worker does."""
    snapshot_id = begin_build(db, collection.id, "test", 30.0)
    assert snapshot_id is not None
    made = build_snapshot(db, blobs, order_of(collection, type, **changes), nobody)
    with db.write() as connection:
        return publish(connection, collection.id, snapshot_id, made, keep)


def brute_force(contents: Contents, query: NDArray[np.float32], k: int) -> list[str]:
    ids = list(contents)
    scores = np.stack([contents[item_id] for item_id in ids]) @ query
    return [ids[at] for at in np.argsort(-scores, kind="stable")[:k]]
