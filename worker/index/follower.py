"""Brings indexes that are in memory up to date as soon as a change is called out, so that the next search need not.

A hint, no more: what counts is that each search reads the log itself (`IndexCache.caught_up`). So nothing is lost if
Redis is away or a message is, and a collection that nobody has searched here is not loaded for it.
"""

from __future__ import annotations

import json
import logging

from redis.client import PubSub

from revln.db.collections.collections import get_collection
from revln.db.collections.generations import shadows_of
from revln.db.engine import Database
from revln.errors import RevlnError
from revln.redis_clients import RedisNames, connect_redis
from revln.settings import Settings
from worker.index.cache import IndexCache
from worker.loop import Loop

__all__ = ["Follower"]

log = logging.getLogger(__name__)

_PING_S = 5.0
_RECONNECT_S = 2.0
_REST_S = 0.05  # a stream of small changes is read twenty times a second, not once for each


class Follower(Loop):
    """Listens, and connects again when Redis was away."""

    def __init__(
        self, settings: Settings, db: Database, indexes: IndexCache, reconnect_s: float = _RECONNECT_S
    ) -> None:
        # Nobody waits for it at the end: it may be reading from Redis for seconds.
        super().__init__("follower", reconnect_s, self._listen, first_s=0.0, patience_s=0.0)
        self._settings, self._db, self._indexes = settings, db, indexes

    def _listen(self) -> None:
        """Follow until this stops or Redis is away; searches then look for themselves."""
        client = connect_redis(self._settings)
        try:
            with client.pubsub() as heard:  # type: ignore[no-untyped-call]
                heard.subscribe(RedisNames(self._settings).collections_channel)
                while not self.stopping.is_set():
                    self._follow(heard)
        finally:
            client.close()

    def _follow(self, heard: PubSub) -> None:
        """Wait for a message, and catch up with all that were sent meanwhile."""
        message = heard.get_message(timeout=_PING_S)
        if message is None:
            heard.ping()
        changed: set[tuple[str, str]] = set()
        while message is not None:
            if message["type"] == "message":
                tenant, name = json.loads(message["data"])
                changed.add((tenant, name))
            message = heard.get_message()
        for tenant, name in changed:
            self._catch_up(tenant, name)
        if changed:
            self.stopping.wait(_REST_S)

    def _catch_up(self, tenant: str, name: str) -> None:
        try:
            with self._db.read() as connection:
                collection = get_collection(connection, tenant, name)
                # After a migration: whoever searched the former vectors will search these next.
                generations = {collection.id, *(one.id for one in shadows_of(connection, collection.id))}
            if self._indexes.holds(generations):
                self._indexes.caught_up(collection)
        except RevlnError as err:  # it was deleted, or the database is away
            log.info("collection %s: %s", name, err.message)
        except Exception:
            log.exception("collection %s is caught up with by its next search", name)
