"""What one worker process shares between its threads. Made after Celery's start, never at import."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import get_ident
from typing import Protocol

from uuid_utils.compat import uuid7

from revln.blobs import BlobStore
from revln.broker import Dispatcher
from revln.db import workers
from revln.db.collections.collections import Collection
from revln.db.collections.snapshots import Snapshot
from revln.db.engine import Database
from revln.db.uploads.quotas import StorageQuotas
from revln.errors import Unavailable
from revln.fetch import FetchPolicy, UrlFetcher
from revln.images import ImageLimits
from revln.installation import Installation
from revln.jobs.kinds import Priority
from revln.models.registry import ModelCatalog
from revln.settings import Settings
from revln.uploads import Uploads
from worker.fair_pool import FairPool
from worker.health.echo import Canary
from worker.health.leaving import Leaving
from worker.health.watchdog import Watchdog
from worker.in_flight import InFlight
from worker.index.auto_build import ask_for_build, ask_for_builds
from worker.index.cache import IndexCache
from worker.index.filters import FilterCache
from worker.index.follower import Follower
from worker.isolation import Isolation
from worker.leases import LeaseKeeper
from worker.loop import Loop
from worker.models.loading import Loader
from worker.models.orders import ModelOrders
from worker.models.pool import LoadedModels
from worker.turns import Turns
from worker.upkeep.janitor import Janitor
from worker.upkeep.sweeper import Sweeper
from worker.webhooks.sender import WebhookSender

__all__ = ["Runtime"]

log = logging.getLogger(__name__)

_FETCH_THREADS = 16  # they wait for other people's servers, not for the processor
_BUILDS_S = 5.0


class _Part(Protocol):
    """What runs in the background."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Runtime:
    """The parts of a worker; ``start`` starts those that run in the background, ``stop`` stops them in reverse."""

    def __init__(self, settings: Settings, queues: list[str], catalog: ModelCatalog | None = None) -> None:
        self.settings = settings
        # As Celery and Flower show it; unique over restarts, because a process id is not.
        self.worker_id = f"worker-{os.getpid()}-{str(uuid7())[-6:]}@{socket.gethostname()}"
        self.queues = queues
        self.db = Database(settings.resolved_database_url)
        self.installation = Installation(settings, self.db)
        self.blobs = BlobStore(settings.resolved_blob_url, settings.min_free_bytes)
        quotas = StorageQuotas(settings.tenant_max_stored_bytes, settings.max_stored_bytes)
        self.uploads = Uploads(self.db, self.blobs, quotas)
        self.fetcher = UrlFetcher(
            FetchPolicy(
                enabled=settings.fetch_urls,
                max_bytes=settings.fetch_max_bytes,
                timeout_s=settings.fetch_timeout_s,
                allow_private=settings.fetch_private_addresses,
            )
        )
        self.image_limits = ImageLimits(max_pixels=settings.max_image_pixels, memory_bytes=settings.image_memory_bytes)
        self.catalog = catalog or ModelCatalog(settings.models, settings.default_model)
        self.leases = LeaseKeeper(settings, self.db, self._beat)
        self.leaving = Leaving(self.leases, self.unregister, settings.shutdown_grace_s)
        self.watchdog = Watchdog(settings.stall_s, self.leaving.hung)
        self.canary = Canary(settings, self.worker_id, self.installation, lambda: self.full, self.leaving.deaf)
        self._occupied: dict[int, bool] = {}
        self.models = LoadedModels(settings, self.catalog, Loader(settings, self.catalog, self.watchdog.forward))
        self.indexes = IndexCache(self.db, self.blobs, self._rebuild)
        self.filters = FilterCache(self.db)
        self.follower = Follower(settings, self.db, self.indexes)
        self.dispatcher = Dispatcher(settings, self.db)
        threads = settings.prepare_threads or settings.cores
        # One for each priority: an interactive query must not stand in line behind a thousand pictures to be decoded.
        self.prepare_pools = {lane: FairPool(threads, f"prepare-{lane}") for lane in Priority}
        self.fetch_pool = ThreadPoolExecutor(_FETCH_THREADS, "fetch")
        self.isolation = Isolation()
        self.in_flight = InFlight()
        self.turns = Turns(self.db, settings.concurrency)
        self.webhooks = WebhookSender(settings, self.db)
        self._model_orders = ModelOrders(self.db, self.models, self._beat)
        # In the order in which they start. Leases are kept until everything else has stopped.
        self._parts: tuple[_Part, ...] = (
            self.leases,
            self.webhooks,
            self.follower,
            self.watchdog,
            self.canary,
            Sweeper(settings, self.db, self.dispatcher, self._model_orders.look),
            Loop("builds", _BUILDS_S, lambda: ask_for_builds(self.db, settings), first_s=settings.sweep_s, jitter=0.25),
            Janitor(settings, self.db, self.blobs, self.uploads, self.indexes),
        )

    def start(self) -> None:
        try:
            workers.register(self.db, self._row())
            self._model_orders.look()
        except Unavailable as err:
            # The next beat does the one, the next sweep the other.
            log.warning("not registered yet: %s", err.message)
        for part in self._parts:
            part.start()

    @contextmanager
    def occupied(self, *, by_chunk: bool) -> Iterator[None]:
        """Around whatever takes a thread of Celery's pool."""
        self._occupied[get_ident()] = by_chunk
        try:
            yield
        finally:
            self._occupied.pop(get_ident(), None)

    @property
    def full(self) -> bool:
        """Whether every thread of the pool is taken; Celery then fetches no messages."""
        return len(self._occupied) >= self.settings.concurrency

    @property
    def busy(self) -> bool:
        """Whether all of them work on chunks. (Those that try the default model may be waiting for it to load.)"""
        return self.full and all(list(self._occupied.values()))

    def stop(self) -> None:
        for part in reversed(self._parts):
            part.stop()
        for pool in self.prepare_pools.values():
            pool.shutdown()
        self.fetch_pool.shutdown(wait=False, cancel_futures=True)
        self.indexes.close()
        self.models.close()
        self.unregister()
        self.dispatcher.close()
        self.db.close()

    def unregister(self) -> None:
        workers.unregister(self.db, self.worker_id)

    def _row(self) -> workers.WorkerRow:
        return workers.WorkerRow(
            id=self.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=self.queues,
            device=self.models.device,
            models=self.models.describe(),
        )

    def _rebuild(self, collection: Collection, damaged: Snapshot) -> None:
        ask_for_build(self.db, self.settings, collection, f"snapshot {damaged.id} is damaged", type=damaged.type)

    def _beat(self) -> None:
        if not workers.beat(self.db, self.worker_id, self.models.describe(), self.canary.silent_s, self.busy):
            workers.register(self.db, self._row())
