"""Removes what has had its time and what nothing refers to. Runs in every worker; each step is safe beside others.

In a thread of its own: a job of a million items takes a minute to remove, a walk over all files perhaps hours, and the
sweeper has chunks to recover meanwhile.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from datetime import timedelta
from threading import Event, Thread

from revln.db import retention
from revln.db.collections.blanking import blank_replaced
from revln.db.collections.collections import collection_ids
from revln.db.jobs import sweep
from revln.db.jobs.usage import mend_usage
from revln.db.webhooks import deliveries
from worker.index.collect import collect_files
from worker.runtime import Runtime
from worker.upkeep.retention import in_steps

__all__ = ["Janitor"]

log = logging.getLogger(__name__)

_CLEAN_S = 60.0
_COLLECT_S = 3_600.0  # a walk over the files of snapshots
_COLLECT_UPLOADS_S = 86_400.0  # and over all pictures and manifests: what it finds, only a crash has left
_YOUNG = timedelta(hours=1)  # an upload of before this version wrote its bytes first
_LOOK_S = 1.0


class Janitor:
    """Cleans every minute, collects every hour and every day; at other moments than the other workers."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._stop = Event()
        self._thread = Thread(target=self._run, name="janitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        rounds: list[tuple[float, Callable[[], None]]] = [
            (_CLEAN_S, self._clean),
            (_COLLECT_S, self._collect),
            (_COLLECT_UPLOADS_S, self._collect_uploads),
        ]
        due = [time.monotonic() + every_s * random.random() for every_s, _ in rounds]  # noqa: S311 - jitter
        while not self._stop.wait(_LOOK_S):
            for at, (every_s, work) in enumerate(rounds):
                if time.monotonic() < due[at]:
                    continue
                try:
                    work()
                except Exception as err:  # noqa: BLE001 - the next round comes
                    log.warning("janitor: %s: %s", type(err).__name__, err)
                due[at] = time.monotonic() + every_s

    def _clean(self) -> None:
        db, settings = self._runtime.db, self._runtime.settings
        with db.read() as connection:
            self._runtime.indexes.forget(collection_ids(connection))
        sweep.delete_lost_workers(db)
        for remove in (
            lambda _: retention.retire_expired(db),
            lambda most: retention.purge(db, most),
            lambda most: retention.purge_collections(db, most),
            lambda most: self._runtime.uploads.expire(settings.upload_retention_s, most),
            lambda most: retention.expire_embeddings(db, settings.embedding_retention_s, most),
            lambda most: retention.expire_audit(db, settings.audit_retention_s, most),
            lambda most: blank_replaced(db, most),
            lambda most: deliveries.give_up(db, most),
            lambda most: deliveries.delete_old(db, settings.webhook_retention_s, most),
        ):
            in_steps(remove, self._stop)

    def _collect(self) -> None:
        mend_usage(self._runtime.db)
        collect_files(self._runtime.db, self._runtime.blobs)

    def _collect_uploads(self) -> None:
        if deleted := self._runtime.uploads.collect(_YOUNG):
            log.info("deleted %d uploads that were nobody's", deleted)
