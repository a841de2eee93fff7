"""Files of snapshots that no row names any more: pruned, left by a builder that died, or of a deleted collection."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from revln.blobs import BlobStore
from revln.db.collections.snapshots import is_referenced
from revln.db.engine import Database
from worker.index.build_process import PREFIX

__all__ = ["collect_files"]

log = logging.getLogger(__name__)

# Between a file's writing and the row that names it lie milliseconds, or a database that was away for a while.
_YOUNG = timedelta(hours=1)


def collect_files(db: Database, blobs: BlobStore, young: timedelta = _YOUNG) -> int:
    """Delete the files that nothing refers to and that were not written just now; how many."""
    deleted = 0
    for file in blobs.list(PREFIX):
        if datetime.now(UTC) - file.modified < young:
            continue
        with db.read() as connection:
            if is_referenced(connection, file.sha256):
                continue
        deleted += blobs.delete(file.sha256, PREFIX, not_since=file.modified)
    blobs.remove_unfinished()
    blobs.remove_damaged()
    if deleted:
        log.info("deleted %d files of snapshots that are gone", deleted)
    return deleted
