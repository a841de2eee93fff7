"""Celery on Redis: the doorbell. A message carries a job id and a chunk number; the truth is in SQL.

The settings below were measured (docs/reliability.md): plain Celery on Redis loses messages when a worker is killed, so
nothing here is relied upon for delivery. A lost message costs a sweep, a repeated one costs a refused claim.
"""

from __future__ import annotations

import json
import time
from uuid import uuid4

import redis
from celery import Celery
from kombu import Queue

from revln.db.engine import Database
from revln.db.jobs.turns import ChunkAddress, take_unpublished
from revln.errors import SettingsError
from revln.installation import Installation
from revln.jobs.kinds import KINDS, all_queues
from revln.redis_clients import ANSWER_S, RedisNames, broker_options, connect_redis
from revln.settings import Settings

__all__ = [
    "CANARY_QUEUE",
    "CANARY_TASK",
    "Dispatcher",
    "make_celery",
    "task_id",
    "task_name",
]

CANARY_QUEUE = "canary"
CANARY_TASK = "revln.canary"

_QUIET_S = 5.0  # after a change could not be called out
_WORKER_SOCKET_TIMEOUT_S = 30  # longer than the worker's own blocking pop, else every idle worker reconnects


def task_name(kind: str) -> str:
    return f"revln.{kind}"


def task_id(job_id: str, number: int) -> str:
    """Fixed for a chunk, so that Flower shows a job under an address that we can give away."""
    return f"{job_id}.{number}"


def make_celery(settings: Settings, *, publisher: bool = False) -> Celery:
    """The Celery app, for a publisher (which must never hang) or for a worker or Flower.

    Raises:
        SettingsError: Redis would deliver a chunk again while it may still be running.
    """
    longest = max(kind.timeout_s for kind in KINDS.values())
    if settings.visibility_timeout_s <= longest:
        raise SettingsError(
            f"REVLN_VISIBILITY_TIMEOUT_S={settings.visibility_timeout_s} must exceed the longest chunk timeout, "
            f"{longest:g} s: Redis would deliver a running chunk a second time."
        )
    app = Celery("revln", set_as_current=False)
    app.conf.update(
        **broker_options(settings),
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        task_ignore_result=True,
        result_backend=None,
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=False,
        task_reject_on_worker_lost=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "global_keyprefix": settings.redis_prefix,
            "visibility_timeout": settings.visibility_timeout_s,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 30,
            "socket_timeout": ANSWER_S if publisher else _WORKER_SOCKET_TIMEOUT_S,
            "socket_connect_timeout": ANSWER_S,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
        task_publish_retry=False,
        worker_send_task_events=True,
        task_send_sent_event=True,
        worker_hijack_root_logger=False,
        task_queues=[Queue(name) for name in (*all_queues(), CANARY_QUEUE)],
        task_create_missing_queues=False,
        enable_utc=True,
    )
    return app


class Dispatcher:
    """Rings the doorbell for queued chunks. Used by the API after a submission and by every sweeper."""

    def __init__(self, settings: Settings, db: Database, quiet_s: float = _QUIET_S) -> None:
        self._settings = settings
        self._db = db
        self._app = make_celery(settings, publisher=True)
        self._redis = connect_redis(settings)
        self._names = RedisNames(settings)
        self._installation = Installation(settings, db)
        self._quiet_s = quiet_s
        self._quiet_until = 0.0

    def dispatch(self, queue: str) -> int:
        """Publish waiting chunks of one queue, as far as its window allows; how many.

        An ungated version published 27,192 messages for 1,000 jobs [measured]: what was published before is published
        again only once the queue is empty, and never more than the window.

        Raises:
            redis.RedisError, kombu.exceptions.OperationalError: Redis does not answer; nothing is lost, the sweeper
                comes again.
            SettingsError: it is another installation's, whose workers would take the messages.
        """
        with self._redis.pipeline(transaction=False) as pipeline:
            self._installation.ask(pipeline)
            pipeline.llen(self._names.queue(queue))
            holder, length = pipeline.execute()
        self._installation.check(holder)
        room = self._settings.publish_window - length
        if room <= 0:
            return 0
        addresses = take_unpublished(self._db, queue, room, self._settings.republish_s, again=length == 0)
        for address in addresses:
            self._publish(address)
        return len(addresses)

    def _publish(self, address: ChunkAddress) -> None:
        self._app.send_task(
            task_name(address.kind),
            args=[address.job_id, address.number],
            task_id=task_id(address.job_id, address.number),
            queue=address.queue,
            retry=False,
        )

    def send_canary(self) -> str:
        """Ask any worker of this installation for a sign of life; return the list on which it answers."""
        nonce = f"{self._installation.id}.{uuid4().hex}"
        self._app.send_task(CANARY_TASK, args=[nonce], queue=CANARY_QUEUE, expires=30, retry=False)
        return self._names.canary_key(nonce)

    def announce(self, job_id: str, changed: tuple[str, str] | None = None) -> None:
        """Call out that a job changed, and the collection (tenant, name) that it changed.

        Nobody hearing it, or Redis being away, is fine.
        """
        if time.monotonic() < self._quiet_until:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.publish(self._names.job_channel(job_id), "changed")
                if changed is not None:
                    pipeline.publish(self._names.collections_channel, json.dumps(changed))
                pipeline.execute()
        except redis.RedisError:
            # Whoever waits also looks at SQL every few seconds. And no worker shall stand still for seconds at each
            # chunk because Redis is frozen.
            self._quiet_until = time.monotonic() + self._quiet_s

    def claim(self) -> None:
        """Hold Redis for this installation; raises as `Installation.claim` does."""
        self._installation.claim(self._redis)

    def close(self) -> None:
        self._redis.close()
        self._app.close()
