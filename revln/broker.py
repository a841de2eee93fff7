"""Celery on Redis: the doorbell. A message carries a job id and a chunk number; the truth is in SQL.

The settings below were measured (docs/reliability.md): plain Celery on Redis loses messages when a worker is killed, so
nothing here is relied upon for delivery. A lost message costs a sweep, a repeated one costs a refused claim.
"""

from __future__ import annotations

import json
import time

import redis
from celery import Celery
from kombu import Queue

from revln.db.engine import Database
from revln.db.jobs.turns import ChunkAddress, take_unpublished
from revln.errors import SettingsError
from revln.jobs.kinds import KINDS, all_queues
from revln.redis_clients import ANSWER_S, broker_options, connect_redis
from revln.settings import Settings

__all__ = [
    "CANARY_QUEUE",
    "CANARY_TASK",
    "COLLECTIONS_CHANNEL",
    "Dispatcher",
    "canary_key",
    "job_channel",
    "make_celery",
    "task_id",
    "task_name",
]

CANARY_QUEUE = "canary"
CANARY_TASK = "revln.canary"
JOB_CHANNEL_PREFIX = "revln:job:"
# Changes of collections, as [tenant, name], to workers that hold their indexes; hints as well.
COLLECTIONS_CHANNEL = "revln:collections"

_QUIET_S = 5.0  # after a change could not be called out
_WORKER_SOCKET_TIMEOUT_S = 30  # longer than the worker's own blocking pop, else every idle worker reconnects


def task_name(kind: str) -> str:
    return f"revln.{kind}"


def task_id(job_id: str, number: int) -> str:
    """Fixed for a chunk, so that Flower shows a job under an address that we can give away."""
    return f"{job_id}.{number}"


def job_channel(job_id: str) -> str:
    """The pub/sub channel on which a job's changes are called out; a hint, never the truth."""
    return f"{JOB_CHANNEL_PREFIX}{job_id}"


def canary_key(nonce: str) -> str:
    """The list on which a worker answers a canary."""
    return f"revln:canary:{nonce}"


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
        self._quiet_s = quiet_s
        self._quiet_until = 0.0

    def dispatch(self, queue: str) -> int:
        """Publish waiting chunks of one queue, as far as its window allows; how many.

        An ungated version published 27,192 messages for 1,000 jobs [measured]: what was published before is published
        again only once the queue is empty, and never more than the window.

        Raises:
            redis.RedisError, kombu.exceptions.OperationalError: Redis does not answer; nothing is lost, the sweeper
                comes again.
        """
        length = int(self._redis.llen(queue))
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

    def send_canary(self, nonce: str) -> None:
        """Ask any worker for a sign of life; it answers on ``canary_key(nonce)``."""
        self._app.send_task(CANARY_TASK, args=[nonce], queue=CANARY_QUEUE, expires=30, retry=False)

    def announce(self, job_id: str, changed: tuple[str, str] | None = None) -> None:
        """Call out that a job changed, and the collection (tenant, name) that it changed.

        Nobody hearing it, or Redis being away, is fine.
        """
        if time.monotonic() < self._quiet_until:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.publish(job_channel(job_id), "changed")
                if changed is not None:
                    pipeline.publish(COLLECTIONS_CHANNEL, json.dumps(changed))
                pipeline.execute()
        except redis.RedisError:
            # Whoever waits also looks at SQL every few seconds. And no worker shall stand still for seconds at each
            # chunk because Redis is frozen.
            self._quiet_until = time.monotonic() + self._quiet_s

    def ping(self) -> None:
        """Raises redis.RedisError if Redis does not answer."""
        self._redis.ping()

    def close(self) -> None:
        self._redis.close()
        self._app.close()
