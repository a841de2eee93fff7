"""The collections' indexes of this process: made on first use, caught up from the log before every search."""

from __future__ import annotations

from threading import Lock

from revln.db.collections import Collection
from revln.db.engine import Database
from revln.db.log import read_log
from revln.index.collection import CollectionIndex

__all__ = ["IndexCache"]


class IndexCache:
    """One index for each collection, by its id: a collection made again under an old name is another one."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._indexes: dict[str, tuple[CollectionIndex, Lock]] = {}
        self._lock = Lock()

    def caught_up(self, collection: Collection) -> CollectionIndex:
        """The index with every row of the log that was committed before this call (read your writes)."""
        with self._lock:
            index, lock = self._indexes.setdefault(collection.id, (CollectionIndex(collection.dim), Lock()))
        with lock:
            while True:
                with self._db.read() as connection:
                    page = read_log(connection, collection.id, index.seq, collection.dim)
                if page.head_seq == index.seq:
                    return index
                index.apply(page.seqs, page.vectors, page.void, page.head_seq)

    def forget(self, alive: set[str]) -> None:
        """Drop the indexes of collections that no longer exist."""
        with self._lock:
            for gone in set(self._indexes) - alive:
                del self._indexes[gone]
