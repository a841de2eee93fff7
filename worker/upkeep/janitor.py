"""Removes what has had its time and what nothing refers to. Runs in every worker; each step is safe beside others.

In threads of its own: a job of a million items takes a minute to remove, a walk over all files perhaps hours, and the
sweeper has chunks to recover meanwhile.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from datetime import timedelta

from revln.blobs import BlobStore
from revln.db import retention
from revln.db.collections.blanking import blank_replaced
from revln.db.collections.collections import collection_ids
from revln.db.engine import Database
from revln.db.jobs import sweep
from revln.db.jobs.usage import mend_usage
from revln.db.webhooks import deliveries
from revln.settings import Settings
from revln.uploads import Uploads
from worker.index.cache import IndexCache
from worker.index.collect import collect_files
from worker.loop import Loop
from worker.upkeep.retention import in_steps

__all__ = ["Janitor"]

log = logging.getLogger(__name__)

_CLEAN_S = 60.0
_COLLECT_S = 3_600.0  # a walk over the files of snapshots
_COLLECT_UPLOADS_S = 86_400.0  # and over all pictures and manifests: what it finds, only a crash has left
_YOUNG = timedelta(hours=1)  # an upload of before this version wrote its bytes first


class Janitor:
    """Cleans every minute, collects every hour and every day; at other moments than the other workers."""

    def __init__(
        self, settings: Settings, db: Database, blobs: BlobStore, uploads: Uploads, indexes: IndexCache
    ) -> None:
        self._settings, self._db, self._blobs, self._uploads, self._indexes = settings, db, blobs, uploads, indexes
        self._cleaning = _at_any_moment("clean", _CLEAN_S, self._clean)
        self._loops = (
            self._cleaning,
            _at_any_moment("collect", _COLLECT_S, self._collect),
            _at_any_moment("collect-uploads", _COLLECT_UPLOADS_S, self._collect_uploads),
        )

    def start(self) -> None:
        for loop in self._loops:
            loop.start()

    def stop(self) -> None:
        for loop in self._loops:
            loop.halt()
        for loop in self._loops:
            loop.stop()

    def _clean(self) -> None:
        db, settings = self._db, self._settings
        with db.read() as connection:
            self._indexes.forget(collection_ids(connection))
        sweep.delete_lost_workers(db)
        for remove in (
            lambda _: retention.retire_expired(db),
            lambda most: retention.purge(db, most),
            lambda most: retention.purge_collections(db, most),
            lambda most: self._uploads.expire(settings.upload_retention_s, most),
            lambda most: retention.expire_embeddings(db, settings.embedding_retention_s, most),
            lambda most: retention.expire_audit(db, settings.audit_retention_s, most),
            lambda most: blank_replaced(db, most),
            lambda most: deliveries.give_up(db, most),
            lambda most: deliveries.delete_old(db, settings.webhook_retention_s, most),
        ):
            in_steps(remove, self._cleaning.stopping)

    def _collect(self) -> None:
        mend_usage(self._db)
        collect_files(self._db, self._blobs)

    def _collect_uploads(self) -> None:
        if deleted := self._uploads.collect(_YOUNG):
            log.info("deleted %d uploads that were nobody's", deleted)


def _at_any_moment(name: str, every_s: float, step: Callable[[], None]) -> Loop:
    return Loop(name, every_s, step, first_s=every_s * random.random())  # noqa: S311 - jitter
