"""Puts right whatever a death or a lost message left behind. Runs in every worker; each step is safe beside others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from revln.broker import Dispatcher
from revln.db.engine import Database
from revln.db.jobs import sweep, turns
from revln.errors import Unavailable
from revln.settings import Settings
from worker.loop import Loop

__all__ = ["Sweeper"]

log = logging.getLogger(__name__)

_HEARTBEATS = 2  # that the living are given to renew their leases when the database is back


class Sweeper(Loop):
    """Recovers lost chunks, ends late jobs, publishes waiting chunks; and looks for orders with ``look_for_orders``."""

    def __init__(
        self, settings: Settings, db: Database, dispatcher: Dispatcher, look_for_orders: Callable[[], None]
    ) -> None:
        super().__init__("sweeper", settings.sweep_s, self.recover, self.publish, look_for_orders, jitter=0.25)
        self._settings, self._db, self._dispatcher = settings, db, dispatcher
        self._recover_at = 0.0
        self._spare_the_living()

    def failed(self, err: Exception) -> None:
        if isinstance(err, Unavailable) and err.database:
            self._spare_the_living()

    def _spare_the_living(self) -> None:
        """Recover nothing for a while: the database was away, or may have been before we began.

        Leases ran out meanwhile by its clock, but nobody could renew them. Whoever lives does so within a heartbeat; a
        crash that is charged to it would be a step of an innocent chunk towards its grave.
        """
        self._recover_at = time.monotonic() + _HEARTBEATS * self._settings.heartbeat_s

    def recover(self) -> None:
        changed: list[str] = []
        if time.monotonic() >= self._recover_at:
            changed = sweep.recover_lost_chunks(self._db, self._settings.max_crashes)
        if changed:
            log.warning("recovered %d chunks whose worker was lost", len(changed))
        for job_id in {*changed, *sweep.expire_deadlines(self._db)}:
            self._dispatcher.announce(job_id)

    def publish(self) -> None:
        for queue in turns.waiting_queues(self._db):
            self._dispatcher.dispatch(queue)
