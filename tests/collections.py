"""Collections of own vectors, and what a search of them must find."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from revln.access import DEFAULT_TENANT, OWNER
from revln.blobs import BlobStore
from revln.db.collections.collections import Collection, create_collection, get_collection, rows_by_seq
from revln.db.collections.log import LogEntry, append_log
from revln.db.collections.snapshots import Snapshot, begin_build, publish
from revln.db.engine import Database
from revln.db.jobs.results import vectors_to_bytes
from revln.index.collection import CollectionIndex
from worker.index.build_process import Order, build_snapshot

__all__ = [
    "Contents",
    "assert_nearest",
    "build",
    "clustered",
    "make_collection",
    "nobody",
    "order_of",
    "read",
    "recall",
    "search",
    "write",
]

Contents = dict[str, NDArray[np.float32]]  # item id → vector: what a collection should hold


def clustered(rows: int, dim: int, seed: int, clusters: int = 40) -> NDArray[np.float32]:
    """(rows, dim) unit vectors around random centres, as embeddings lie."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((clusters, dim))
    vectors = centres[random.integers(0, clusters, rows)] + 0.6 * random.standard_normal((rows, dim))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def make_collection(db: Database, dim: int, name: str = "c") -> Collection:
    return create_collection(db, OWNER, name, "", f"vectors-{dim}", dim, {})[0]


def read(db: Database, name: str = "c") -> Collection:
    with db.read() as connection:
        return get_collection(connection, DEFAULT_TENANT, name)


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
    db: Database,
    blobs: BlobStore,
    collection: Collection,
    type: str | None = None,
    *,
    keep: int = 3,
    owner: str = "test",
    **changes: Any,
) -> Snapshot:
    """Build and publish, as the worker does."""
    snapshot_id = begin_build(db, collection.id, owner, 30.0)
    assert snapshot_id is not None
    made = build_snapshot(db, blobs, order_of(collection, type, **changes), nobody)
    with db.write() as connection:
        return publish(connection, collection.id, snapshot_id, made, keep)


def search(
    db: Database,
    collection: Collection,
    index: CollectionIndex,
    query: NDArray[np.float32],
    k: int,
    *,
    exact: bool = False,
) -> list[tuple[str, float]]:
    """Items and scores, best first."""
    hits = index.search(query[None], k, exact=exact)[0]
    with db.read() as connection:
        rows = rows_by_seq(connection, collection.id, [seq for seq, _ in hits])
    return [(rows[seq]["item_id"], score) for seq, score in hits]


def assert_nearest(found: list[tuple[str, float]], contents: Contents, query: NDArray[np.float32], k: int) -> None:
    """Whether these are the k nearest by brute force; which of two equal ones comes first is left open."""
    scores = {item_id: float(vector @ query) for item_id, vector in contents.items()}
    assert len({item_id for item_id, _ in found}) == len(found)
    assert all(abs(scores[item_id] - score) < 1e-5 for item_id, score in found)
    wanted = sorted(scores.values(), reverse=True)[:k]
    assert np.allclose([score for _, score in found], wanted, atol=1e-5)


def recall(db: Database, collection: Collection, index: CollectionIndex, contents: Contents, k: int = 10) -> float:
    """Of the true k nearest of 40 queries, the share that is found."""
    ids, rows = list(contents), np.stack(list(contents.values()))
    queries = clustered(40, collection.dim, 2)
    best = np.argsort(-(queries @ rows.T), axis=1, kind="stable")[:, :k]
    found = index.search(queries, k)
    with db.read() as connection:
        of = rows_by_seq(connection, collection.id, [seq for hits in found for seq, _ in hits])
    common = [
        len({of[seq]["item_id"] for seq, _ in hits} & {ids[at] for at in row})
        for hits, row in zip(found, best.tolist(), strict=True)
    ]
    return sum(common) / best.size
