"""Waiting for a job without holding a thread.

One connection to Redis hears of every job's changes and wakes the coroutines that wait for that job. A hint that is
lost (Redis away, a message missed) costs a slow re-check of SQL, never an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TypeVar

import redis.asyncio
from redis.exceptions import RedisError

from revln.redis_clients import RedisNames, connect_redis_async
from revln.settings import Settings

__all__ = ["Waiter"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_RECHECK_S = 2.0
# While it is: 800 waiting clients that looked every 2 s took half a core (measured), for nothing.
_TRUSTING_RECHECK_S = 10.0
_PING_S = 5.0  # a Redis that is frozen does not close the connection
_TRUSTED_S = 2.5 * _PING_S
_RECONNECT_S = 1.0


class Waiter:
    """Wakes whoever waits for a job."""

    def __init__(self, settings: Settings, recheck_s: float = _RECHECK_S) -> None:
        """``recheck_s``: how often SQL is looked at while nothing is heard from Redis."""
        self._settings = settings
        self._channel = RedisNames(settings).job_channel
        self._events: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None
        self._heard_at = float("-inf")  # the loop's time of the last word from Redis
        self._recheck_s = recheck_s
        self.closing = asyncio.Event()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        self.closing.set()
        for events in self._events.values():
            for event in events:
                event.set()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def until(self, job_id: str, look: Callable[[], Awaitable[T | None]], wait_s: float) -> T | None:
        """What ``look`` returns once it is not None, or None after ``wait_s`` seconds.

        ``look`` is called at once, at every hint, and every few seconds.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + wait_s
        event = asyncio.Event()
        self._events[job_id].add(event)
        try:
            while True:
                event.clear()
                found = await look()
                left = give_up_at - loop.time()
                if found is not None or left <= 0 or self.closing.is_set():
                    return found
                with contextlib.suppress(TimeoutError):
                    heard = loop.time() - self._heard_at < _TRUSTED_S
                    await asyncio.wait_for(event.wait(), min(left, _TRUSTING_RECHECK_S if heard else self._recheck_s))
        finally:
            self._events[job_id].discard(event)
            if not self._events[job_id]:
                del self._events[job_id]

    async def _listen(self) -> None:
        """Hear of changes for as long as the API lives; reconnect when Redis goes and comes."""
        while True:
            client = connect_redis_async(self._settings, socket_connect_timeout=2, health_check_interval=10)
            try:
                async with client.pubsub() as pubsub:
                    await pubsub.psubscribe(self._channel("*"))
                    while True:
                        await self._hear(pubsub)
            except (RedisError, OSError) as err:
                log.warning("not listening for changes, looking every %g s: %s", self._recheck_s, err)
                await asyncio.sleep(_RECONNECT_S)
            finally:
                await client.aclose()

    async def _hear(self, pubsub: redis.asyncio.client.PubSub) -> None:
        message = await pubsub.get_message(timeout=_PING_S)
        if message is None:
            await pubsub.ping()
            return
        self._heard_at = asyncio.get_running_loop().time()
        if message["type"] == "pmessage":
            self._wake(message["channel"].removeprefix(self._channel("")))
        elif message["type"] == "psubscribe":  # connected: whatever was called out before went unheard
            for job_id in list(self._events):
                self._wake(job_id)

    def _wake(self, job_id: str) -> None:
        for event in self._events.get(job_id, ()):
            event.set()
