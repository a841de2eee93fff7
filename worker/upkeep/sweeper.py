"""Puts right whatever a death or a lost message left behind. Runs in every worker; each step is safe beside others."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from threading import Event, Thread

from revln.db.jobs import sweep, turns
from revln.errors import RevlnError, Unavailable
from worker.index.auto_build import ask_for_builds
from worker.runtime import Runtime

__all__ = ["Sweeper"]

log = logging.getLogger(__name__)

_HEARTBEATS = 2  # that the living are given to renew their leases when the database is back
_BUILDS_S = 5.0


class Sweeper:
    """Recovers lost chunks, publishes waiting ones, ends late jobs, asks for builds."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._stop = Event()
        self._thread = Thread(target=self._run, name="sweeper", daemon=True)
        self._recover_at = 0.0
        self._spare_the_living()
        self._builds_at = time.monotonic()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        # Jitter, so that the sweepers of many workers do not come all at once.
        while not self._stop.wait(self._runtime.settings.sweep_s * random.uniform(0.75, 1.25)):  # noqa: S311
            self._step("recover", self._recover)
            self._step("publish", self._publish)
            self._step("model orders", self._runtime.model_orders.look)
            if time.monotonic() >= self._builds_at:
                self._builds_at = time.monotonic() + _BUILDS_S
                self._step("build", self._build)

    def _step(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except RevlnError as err:
            if isinstance(err, Unavailable) and err.database:
                self._spare_the_living()
            log.warning("sweeper: %s: %s", name, err)
        except Exception as err:  # noqa: BLE001 - Redis is away, most likely; the next round comes in seconds
            log.warning("sweeper: %s: %s: %s", name, type(err).__name__, err)

    def _spare_the_living(self) -> None:
        """Recover nothing for a while: the database was away, or may have been before we began.

        Leases ran out meanwhile by its clock, but nobody could renew them. Whoever lives does so within a heartbeat; a
        crash that is charged to it would be a step of an innocent chunk towards its grave.
        """
        self._recover_at = time.monotonic() + _HEARTBEATS * self._runtime.settings.heartbeat_s

    def _recover(self) -> None:
        runtime = self._runtime
        changed: list[str] = []
        if time.monotonic() >= self._recover_at:
            changed = sweep.recover_lost_chunks(runtime.db, runtime.settings.max_crashes)
        if changed:
            log.warning("recovered %d chunks whose worker was lost", len(changed))
        for job_id in {*changed, *sweep.expire_deadlines(runtime.db)}:
            runtime.dispatcher.announce(job_id)

    def _publish(self) -> None:
        for queue in turns.waiting_queues(self._runtime.db):
            self._runtime.dispatcher.dispatch(queue)

    def _build(self) -> None:
        ask_for_builds(self._runtime.db, self._runtime.settings)
