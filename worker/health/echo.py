"""Whether this worker hears: it sends itself messages through Redis, and ends itself when they do not arrive.

A process that is up and beats may be deaf all the same: Celery's consumer is another thread than the heartbeat's, and
what happens to it when Redis dies, comes back, is frozen or drops its connections is not always seen by it. Docker does
not restart a container that is merely unhealthy; it does restart one whose process has ended, and so does every other
supervisor.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import redis
from kombu import Queue
from kombu.exceptions import OperationalError

from revln.broker import make_celery
from revln.errors import SettingsError
from revln.installation import Installation
from revln.redis_clients import RedisNames, connect_redis
from revln.settings import Settings
from worker.loop import Loop

__all__ = ["ECHO_TASK", "Canary", "echo_queue"]

log = logging.getLogger(__name__)

ECHO_TASK = "revln.echo"
_KEPT_S = 120  # a message that nobody fetches, because its worker died, is forgotten by Redis
_MOST_PAUSE_S = 5.0


def echo_queue(worker_id: str) -> Queue:
    """A queue of this worker alone. Undeclared: a binding would be left behind in Redis by each worker that dies."""
    return Queue(f"echo.{worker_id}", no_declare=True)


class Canary(Loop):
    """Sends the messages, and judges by what arrives.

    Args:
        full: whether every thread of the pool is taken: Celery then fetches nothing, and that is no deafness.
        on_deaf: is called once and should not return. So it is if Redis is another installation's by now, whose
            messages this worker would take.
    """

    def __init__(
        self,
        settings: Settings,
        worker_id: str,
        installation: Installation,
        full: Callable[[], bool],
        on_deaf: Callable[[], object],
    ) -> None:
        # In this order: the claim may wait for the database, and nobody is deaf because of that.
        super().__init__("canary", min(_MOST_PAUSE_S, settings.deaf_s / 4), self._judge, self._claim)
        self._installation = installation
        self._queue = echo_queue(worker_id)
        self._deaf_s = settings.deaf_s
        self._full, self._on_deaf = full, on_deaf
        self._app = make_celery(settings, publisher=True)
        self._app.conf.task_send_sent_event = False  # Flower shows what users sent
        self._redis = connect_redis(settings)
        self._list = RedisNames(settings).queue(self._queue.name)
        self._well_at = time.monotonic()

    def start(self) -> None:
        self.heard()
        super().start()

    def stop(self) -> None:
        super().stop()
        self._redis.close()
        self._app.close()

    def heard(self) -> None:
        """One arrived."""
        self._well_at = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Since it heard one, or could not have."""
        return time.monotonic() - self._well_at

    def look(self) -> bool:
        """Send one, unless the last still lies there; whether the worker is deaf."""
        try:
            waiting = self._redis.llen(self._list)
            if not waiting:
                self._app.send_task(ECHO_TASK, queue=self._queue, expires=_KEPT_S, retry=False)
                self._redis.expire(self._list, _KEPT_S)
        except (redis.RedisError, OperationalError) as err:
            log.info("no canary, Redis does not answer: %s", err)
            self.heard()  # or could have: nothing is known of the worker as long as Redis is away
        if self._full():
            self.heard()
        return self.silent_s > self._deaf_s

    def _judge(self) -> None:
        if self.look() and not self.stopping.is_set():
            self.halt()
            log.critical("this worker ends itself: it has not heard its own messages for %g s", self._deaf_s)
            self._on_deaf()

    def _claim(self) -> None:
        try:
            self._installation.claim(self._redis)
        except SettingsError as err:
            if not self.stopping.is_set():
                self.halt()
                log.critical("this worker ends itself: %s", err.message)
                self._on_deaf()
