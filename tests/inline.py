"""revln in this very process: the API's own application on a real port, and chunks run by threads of ours.

Everything between an HTTP request and the database is real; only Celery and Redis, which carry nothing but ids, are
left out. It starts in a second, so it is for tests of what jobs do; how they survive is tested on `tests.stack`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import select

from api.app import create_app
from api.state import ApiState
from api.waiting import Waiter
from revln import embedded_redis
from revln.client import RevlnClient
from revln.db import tables
from revln.db.engine import db_now
from revln.db.migrate import upgrade
from revln.jobs.kinds import all_queues
from revln.models.registry import ModelCatalog
from revln.settings import Settings
from tests.stack import wait_until
from worker.execute import execute
from worker.models import loading
from worker.runtime import Runtime

__all__ = ["InlineStack", "inline_stack"]

_THREADS = 3


class InlineStack:
    """``http`` and ``client`` as a `Stack` has them; ``runtime`` is the worker's, for a look inside."""

    def __init__(self, settings: Settings, catalog: ModelCatalog | None = None) -> None:
        self.settings = settings
        self.url = f"http://127.0.0.1:{settings.api_port}"
        self.runtime = Runtime(settings, all_queues(), catalog)
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        self.client = RevlnClient(self.url)
        self._stop = Event()
        # Nobody calls out changes without Redis.
        self._app = create_app(settings, lambda _: ApiState(settings, catalog, Waiter(settings, recheck_s=0.05)))
        self._server = uvicorn.Server(uvicorn.Config(self._app, port=settings.api_port, log_config=None, lifespan="on"))
        self._threads = [Thread(target=self._server.run, name="api", daemon=True)]
        self._threads += [Thread(target=self._work, name=f"worker-{n}", daemon=True) for n in range(_THREADS)]

    def start(self) -> None:
        self.runtime.leases.start()
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self._server.started, what="the API")

    @property
    def api_state(self) -> ApiState:
        """What the API's routes share, once it is started."""
        state: ApiState = self._app.state.revln
        return state

    def stop(self) -> None:
        self._stop.set()
        self._server.should_exit = True
        for thread in self._threads:
            thread.join(timeout=20)
        self.http.close()
        self.client.close()
        self.runtime.stop()

    def _work(self) -> None:
        columns = tables.chunks.c
        queued = select(columns.job_id, columns.number).where(columns.state == "queued", columns.run_at <= db_now())
        while not self._stop.wait(0.01):
            try:
                with self.runtime.db.read() as connection:
                    found = connection.execute(queued.order_by(columns.run_at).limit(1)).one_or_none()
                if found is not None:
                    execute(self.runtime, found.job_id, found.number)
            except Exception:
                logging.getLogger(__name__).exception("a chunk raised")


@contextmanager
def inline_stack(
    database_url: str, folder: Path, catalog: ModelCatalog | None = None, **settings: Any
) -> Iterator[InlineStack]:
    """Running around a database of any kind, which is migrated first; ``catalog`` stands in for the models."""
    known = {
        "data_dir": folder, "database_url": database_url, "device": "cpu", "redis_url": "redis://127.0.0.1:1/0",
        "api_port": embedded_redis.free_port("127.0.0.1"), **settings,
    }  # fmt: skip
    made = Settings(**known)
    upgrade(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "choose_device", lambda _: "cpu")  # the only thing for which torch would be imported
        patch.setattr("api.app.configure_logging", lambda _: None)  # pytest's, which shows what failing tests logged
        stack = InlineStack(made, catalog)
        try:
            stack.start()
            yield stack
        finally:
            stack.stop()
