"""The collections' indexes of this process: made on first use, caught up from the log before every search.

A worker begins with the collection's current snapshot and replays the log past it. When another snapshot becomes the
current one (built anew, or rolled back to), it is loaded beside the index that serves, and takes its place caught up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

from revln.blobs import BlobStore
from revln.db.collections.collections import Collection
from revln.db.collections.log import read_log
from revln.db.collections.snapshots import Snapshot
from revln.db.engine import Database
from revln.errors import RevlnError, Unavailable
from revln.index.collection import CollectionIndex
from worker.index.load import load_newest

__all__ = ["IndexCache"]

log = logging.getLogger(__name__)

_AGAIN_S = 30.0  # until a snapshot that could not be read is tried again


@dataclass(slots=True)
class _Entry:
    index: CollectionIndex | None = None
    snapshot_id: str | None = None  # what the index began with
    loading: bool = False
    try_at: float = 0.0
    lock: Lock = field(default_factory=Lock)


class IndexCache:
    """One index for each collection, by its id: a collection made again under an old name is another one.

    ``on_damage`` hears of snapshots whose files are not what they were.
    """

    def __init__(
        self, db: Database, blobs: BlobStore, on_damage: Callable[[Collection, Snapshot], None] = lambda *_: None
    ) -> None:
        self._db, self._blobs, self._on_damage = db, blobs, on_damage
        self._entries: dict[str, _Entry] = {}
        self._lock = Lock()
        self._loader = ThreadPoolExecutor(1, "index-loader")  # one: two large indexes at once may not fit

    def caught_up(self, collection: Collection) -> CollectionIndex:
        """The index with every row of the log that was committed before this call (read your writes)."""
        with self._lock:
            entry = self._entries.setdefault(collection.id, _Entry())
        with entry.lock:
            if entry.index is None:
                self._load_first(entry, collection)
            elif entry.snapshot_id != collection.snapshot_id and not entry.loading and time.monotonic() >= entry.try_at:
                entry.loading = True
                self._loader.submit(self._replace, entry, collection)
            assert entry.index is not None
            self._replay(entry.index, collection)
            return entry.index

    def holds(self, collection_ids: set[str]) -> bool:
        """Whether the index of one of these is in memory."""
        with self._lock:
            return any(entry.index is not None for key, entry in self._entries.items() if key in collection_ids)

    def forget(self, alive: set[str]) -> None:
        """Drop the indexes of collections that no longer exist."""
        with self._lock:
            for gone in set(self._entries) - alive:
                del self._entries[gone]

    def close(self) -> None:
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _load_first(self, entry: _Entry, collection: Collection) -> None:
        try:
            entry.index, entry.snapshot_id = load_newest(self._db, self._blobs, collection, self._on_damage)
        except Unavailable as err:
            # The blob store is away, or memory was short. The log alone is enough, only slower.
            log.warning("collection %s is searched from its log: %s", collection.name, err.message)
            entry.index, entry.snapshot_id = CollectionIndex(collection.dim), None
            entry.try_at = time.monotonic() + _AGAIN_S

    def _replace(self, entry: _Entry, collection: Collection) -> None:
        """Load what is current now, catch up, and let it take the place of what serves."""
        entry.try_at = time.monotonic() + _AGAIN_S
        try:
            index, snapshot_id = load_newest(self._db, self._blobs, collection, self._on_damage)
            if snapshot_id is None:  # every file is damaged; what serves was read when it was whole
                entry.snapshot_id, entry.try_at = None, 0.0
                return
            self._replay(index, collection)  # most of it; searches go on meanwhile
            with entry.lock:
                self._replay(index, collection)
                entry.index, entry.snapshot_id, entry.try_at = index, snapshot_id, 0.0
            log.info("collection %s is searched from snapshot %s", collection.name, snapshot_id)
        except RevlnError as err:
            log.warning("collection %s keeps its index: %s", collection.name, err.message)
        except Exception:
            log.exception("collection %s keeps its index", collection.name)
        finally:
            entry.loading = False

    def _replay(self, index: CollectionIndex, collection: Collection) -> None:
        while True:
            with self._db.read() as connection:
                page = read_log(connection, collection.id, index.seq, collection.dim)
            if page.head_seq == index.seq:
                return
            index.apply(page.seqs, page.vectors, page.void, page.head_seq)
