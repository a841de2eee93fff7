"""The API keys as one process knows them: looked up in SQL, kept for two seconds, written never on a request's path."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections import OrderedDict
from dataclasses import dataclass

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from revln.access import ALL_SCOPES, DEFAULT_TENANT, OWNER, Caller, is_loopback, parse_key, same_secret
from revln.db.access.keys import ApiKey, any_keys, find_key, set_used
from revln.db.engine import Database
from revln.errors import RevlnError, Unauthorized, Unavailable
from revln.settings import Settings

__all__ = ["KeyRing"]

_FRESH_S = 2.0  # how long a key that was revoked may still be taken
_MOST = 10_000  # keys remembered, those that do not exist among them
_NOTE_S = 60.0  # between two notes of which keys were used
_THREADS = 2  # a look-up takes a fraction of a millisecond

_BOOTSTRAP = Caller(DEFAULT_TENANT, "bootstrap", ALL_SCOPES)


@dataclass(frozen=True, slots=True)
class _Known:
    found: tuple[ApiKey, str] | None
    at: float


class KeyRing:
    """Used by the event loop's thread alone; only lookups and notes go to another one.

    Those threads are its own: neither slow routes nor strangers, who can make up keys, keep a known key waiting.
    """

    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._bootstrap = settings.api_key.get_secret_value().encode()
        # Off loopback nothing is open, whatever keys there are.
        self._may_be_open = not self._bootstrap and is_loopback(settings.api_host)
        self._looked_at = float("-inf")
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._used: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._threads, self._strangers = CapacityLimiter(_THREADS), CapacityLimiter(_THREADS)

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_noting())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._note()

    async def caller(self, authorization: str | None) -> Caller:
        """Who sends this header. Raises Unauthorized, Unavailable."""
        if await self._is_open():
            return OWNER
        scheme, _, given = (authorization or "").partition(" ")
        given = given.strip()
        if scheme.lower() != "bearer" or not given:
            raise Unauthorized
        if self._bootstrap and hmac.compare_digest(given.encode("latin-1", "replace"), self._bootstrap):
            return _BOOTSTRAP
        parsed = parse_key(given)
        if parsed is None:
            raise Unauthorized("This is not a key of this service. Send one as 'Authorization: Bearer rvl_…'.")
        key = await self._live_key(parsed[0], parsed[1])
        self._used[key.id] = time.monotonic()
        return key.caller()

    async def check(self, caller: Caller) -> None:
        """Whether a request that has been held for a while may still be answered. Raises Unauthorized, Unavailable."""
        if caller.key_id is not None:
            await self._live_key(caller.key_id, None)
        elif caller.who == OWNER.who and not await self._is_open():
            raise Unauthorized

    async def _live_key(self, key_id: str, secret: str | None) -> ApiKey:
        """``secret`` is None where it has been seen before."""
        found = await self._find(key_id)
        # One answer for all: whether an id exists is nobody's business who has not its secret.
        if found is None or (secret is not None and not same_secret(secret, found[1])):
            raise Unauthorized("There is no such key.")
        if not found[0].live:
            raise Unauthorized(f"Key {key_id} was revoked or has expired.")
        return found[0]

    async def _find(self, key_id: str) -> tuple[ApiKey, str] | None:
        known = self._known.get(key_id)
        if known is not None and time.monotonic() - known.at < _FRESH_S:
            return known.found
        asked_at = time.monotonic()  # before the answer is read: it may be old by the time it is here
        threads = self._threads if known is not None and known.found is not None else self._strangers
        found = await run_sync(self._look_up, key_id, limiter=threads)
        self._known[key_id] = _Known(found, asked_at)
        self._known.move_to_end(key_id)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        return found

    def _look_up(self, key_id: str) -> tuple[ApiKey, str] | None:
        with self._db.read() as connection:
            return find_key(connection, key_id)

    async def _is_open(self) -> bool:
        """Whether there is no key at all, and nobody but this machine can reach us."""
        if self._may_be_open and time.monotonic() - self._looked_at >= _FRESH_S:
            asked_at = time.monotonic()
            try:
                self._may_be_open = not await run_sync(self._any_keys, limiter=self._threads)
            except Unavailable:
                if self._looked_at == float("-inf"):
                    raise  # never seen to be open
            self._looked_at = asked_at
        return self._may_be_open

    def _any_keys(self) -> bool:
        with self._db.read() as connection:
            return any_keys(connection)

    async def _keep_noting(self) -> None:
        while True:
            await asyncio.sleep(_NOTE_S)
            await self._note()

    async def _note(self) -> None:
        used, self._used = self._used, {}
        if not used:
            return
        now = time.monotonic()
        with contextlib.suppress(RevlnError):  # the database is away; the next use will be noted
            used_s_ago = {key_id: now - at for key_id, at in used.items()}
            await run_sync(set_used, self._db, used_s_ago, limiter=self._threads)
