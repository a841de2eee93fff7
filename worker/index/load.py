"""From a snapshot's file to an index, and what is done where the file is not what it was."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from revln.blobs import BlobStore
from revln.db.collections.collections import Collection
from revln.db.collections.log import read_vectors
from revln.db.collections.snapshots import Snapshot, current_snapshot, set_damaged
from revln.db.engine import Database
from revln.errors import ItemNotFound, Unavailable
from revln.index.base import Base, Breadth, Fetch, IndexType
from revln.index.collection import CollectionIndex
from revln.index.files import read_index
from worker.index.build_process import PREFIX

__all__ = ["load_newest"]

log = logging.getLogger(__name__)

OnDamage = Callable[[Collection, Snapshot], None]


def load_newest(
    db: Database, blobs: BlobStore, collection: Collection, on_damage: OnDamage
) -> tuple[CollectionIndex, str | None]:
    """The index of the collection's current snapshot, and that one's id; an empty index, to replay the whole log, if
    there is none.

    A file that is gone or damaged is reported to ``on_damage``, by the first who notices, and the next older snapshot
    taken.

    Raises:
        Unavailable: the blob store does not answer.
    """
    while True:
        with db.read() as connection:
            snapshot = current_snapshot(connection, collection.id)
        if snapshot is None:
            return CollectionIndex(collection.dim), None
        try:
            return _loaded(db, blobs, collection, snapshot), snapshot.id
        except ItemNotFound as err:
            log.error("snapshot %s of collection %s: %s", snapshot.id, collection.name, err.message)
            if set_damaged(db, snapshot):
                on_damage(collection, snapshot)


def _loaded(db: Database, blobs: BlobStore, collection: Collection, snapshot: Snapshot) -> CollectionIndex:
    digest = hashlib.sha256()

    def read(size: int) -> bytes:
        data = file.read(size)
        digest.update(data)
        return data

    with blobs.open_checked(snapshot.sha256, PREFIX) as file:
        # Into memory of its own: through a map, whoever damages the file later would damage answers, or kill us.
        try:
            index = read_index(read)
        except (RuntimeError, MemoryError) as err:
            raise Unavailable(f"Snapshot {snapshot.id} could not be loaded: {str(err)[:200]}") from err
        digest.update(file.read())
    if digest.hexdigest() != snapshot.sha256:
        raise Unavailable(f"Snapshot {snapshot.id} changed while it was read.")
    if snapshot.type == IndexType.FLAT:
        return CollectionIndex.of_flat(index, snapshot.up_to_seq)
    breadth = Breadth(**snapshot.parameters)
    base = Base(IndexType(snapshot.type), index, snapshot.up_to_seq, breadth, _fetch(db, collection))
    return CollectionIndex(collection.dim, base)


def _fetch(db: Database, collection: Collection) -> Fetch:
    def fetch(seqs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        with db.read() as connection:
            return read_vectors(connection, collection.id, seqs, collection.dim)

    return fetch
