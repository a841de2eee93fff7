"""Celery's worker and its consumer, where they give up too soon on a Redis that comes back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.apps.worker import Worker
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown
from kombu.transport import redis as redis_transport

__all__ = ["ForgetfulQoS", "PatientConsumer", "StoppingWorker"]

log = logging.getLogger(__name__)

# Celery's own pause grows to 30 s: a Redis that was away for a minute would wait that long for its workers.
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 2.0


class ForgetfulQoS(redis_transport.QoS):  # type: ignore[misc]  # kombu is untyped
    """Acknowledges, and puts back, nothing of a connection that is gone.

    kombu's own tries, and stumbles over what is not there any more (celery/kombu#582); Celery takes the AttributeError
    for unrecoverable, and the worker down [seen in each of two kills of Redis under load, at two places]. The message
    comes again, or not; the chunk's row knows better.
    """

    @property
    def _gone(self) -> bool:
        return getattr(self.channel.connection, "client", None) is None

    def ack(self, delivery_tag: str) -> None:
        if not self._gone:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if not self._gone:
            super().reject(delivery_tag, requeue)

    def restore_unacked(self, client: Any = None) -> None:
        if not self._gone:
            super().restore_unacked(client)


class PatientConsumer(Consumer):  # type: ignore[misc]  # so is Celery
    """Tries again until it is connected."""

    def ensure_connected(self, conn: Any) -> Any:
        def failed(err: Exception, pause_s: float) -> None:
            log.warning("no connection to %s: %s; again in %.1f s", conn.as_uri(), err, pause_s)

        conn.ensure_connection(
            failed, None, interval_start=_PAUSE_S, interval_step=_PAUSE_S, interval_max=_LONGEST_PAUSE_S,
            callback=maybe_shutdown,
        )  # fmt: skip
        self.first_connection_attempt = False
        return conn

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        try:
            super().on_connection_error_after_connected(exc)
        except Exception as err:  # noqa: BLE001 - whatever it is, we connect again
            # The old connection is forgotten by now.
            log.warning("the lost connection could not be closed: %s: %s", type(err).__name__, err)


class StoppingWorker(Worker):  # type: ignore[misc]
    """``on_stop`` is called with the exit status when it stops for whatever reason, before it waits for what runs."""

    def __init__(self, on_stop: Callable[[int], None], **options: Any) -> None:
        self._on_stop = on_stop
        redis_transport.Channel.QoS = ForgetfulQoS
        super().__init__(consumer_cls=PatientConsumer, **options)

    def stop(self, in_sighandler: bool = False, exitcode: int | None = None) -> None:
        self._on_stop(int(exitcode or 0))
        super().stop(in_sighandler, exitcode)
