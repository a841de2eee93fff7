"""What the API's routes share: the database, the blobs, the publisher and the waiters."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from api.keyring import KeyRing
from api.pool import SlowWork
from api.publisher import Publisher
from api.rates import Rates
from api.thumbnails import ThumbnailCache
from api.waiting import Waiter
from revln.blobs import BlobStore
from revln.broker import Dispatcher
from revln.db.engine import Database
from revln.db.uploads.quotas import StorageQuotas
from revln.images import ImageLimits
from revln.models.registry import ModelCatalog
from revln.settings import Settings
from revln.uploads import Uploads

__all__ = ["ApiState", "State"]

_WAITING = 64  # of one tenant: a page's thumbnails, asked for at once


class ApiState:
    """Built when the application starts, in the process that serves."""

    def __init__(self, settings: Settings, catalog: ModelCatalog | None = None, waiter: Waiter | None = None) -> None:
        self.settings = settings
        self.db = Database(settings.resolved_database_url)
        self.blobs = BlobStore(settings.resolved_blob_url, settings.min_free_bytes)
        quotas = StorageQuotas(settings.tenant_max_stored_bytes, settings.max_stored_bytes)
        self.uploads = Uploads(self.db, self.blobs, quotas)
        self.keys = KeyRing(self.db, settings)
        self.catalog = catalog or ModelCatalog(settings.models, settings.default_model)
        self.image_limits = ImageLimits(max_pixels=settings.max_image_pixels, memory_bytes=settings.image_memory_bytes)
        # One more than there are cores: a tenant may have all of these and still leaves a thread to the others.
        self.pictures = SlowWork("pictures", settings.cores + 1, _WAITING)
        self.filters = SlowWork("filtered listings", settings.cores + 1, _WAITING)
        self.thumbnails = ThumbnailCache()
        self.dispatcher = Dispatcher(settings, self.db)
        self.publisher = Publisher(self.dispatcher)
        self.waiter = waiter or Waiter(settings)
        self.rates = Rates(settings)
        self.canary_s = 5.0  # within which a worker must answer for the API to be ready

    async def start(self) -> None:
        self.publisher.start()
        self.keys.start()
        await self.waiter.start()

    async def stop(self) -> None:
        await self.waiter.stop()
        await self.rates.close()
        self.publisher.stop()
        await self.keys.stop()
        self.dispatcher.close()
        self.db.close()


async def _state(request: Request) -> ApiState:
    # Not a plain function: FastAPI would take a thread to call it.
    return cast(ApiState, request.app.state.revln)


State = Annotated[ApiState, Depends(_state)]
