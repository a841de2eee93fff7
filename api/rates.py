"""How often a key may ask: counted in Redis, for all API processes together.

While Redis does not answer, each process counts for itself: a service of four processes then lets through up to four
times as much, and nobody is turned away, or made to wait, because Redis is.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import problem_response
from revln.access import Caller
from revln.errors import RateLimited
from revln.redis_clients import RedisNames, redis_pool_async
from revln.settings import Settings

__all__ = ["LimitRate", "Rates"]

log = logging.getLogger(__name__)

_WINDOW_S = 10  # a burst may be as long as this allows; it also lets rates below one a second be told
_ANSWER_S = 0.2  # a frozen Redis must not be felt
_AGAIN_S = 5.0  # until Redis is asked again after it did not answer


class Rates:
    """For one process; made within its event loop's thread, asked from its coroutines."""

    def __init__(self, settings: Settings, window_s: int = _WINDOW_S) -> None:
        self._window_s = window_s
        self._per_s = settings.requests_per_s
        self._pool = redis_pool_async(settings, socket_timeout=_ANSWER_S, socket_connect_timeout=_ANSWER_S)
        options: dict[str, Any] = {"connection_pool": self._pool}
        # The scheme only tells it that this is Redis; where it is, the pool knows.
        prefix = RedisNames(settings).rates
        shared = RedisStorage("redis://", implementation="redispy", key_prefix=prefix, **options)
        self._shared = SlidingWindowCounterRateLimiter(shared)
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared_from = 0.0

    async def close(self) -> None:
        await self._pool.aclose()

    async def check(self, caller: Caller) -> None:
        """Count a request. Raises RateLimited."""
        per_s = caller.requests_per_s or self._per_s
        if not per_s:
            return
        item = RateLimitItemPerSecond(max(1, round(per_s * self._window_s)), self._window_s)
        whose = (caller.tenant, caller.key_id or "")
        if time.monotonic() >= self._shared_from:
            try:
                await self._count(self._shared, item, whose, per_s)
                return
            except (RedisError, OSError) as err:
                self._shared_from = time.monotonic() + _AGAIN_S
                log.warning("requests are counted by each process for itself: %s", type(err).__name__)
        await self._count(self._own, item, whose, per_s)

    async def _count(
        self,
        limiter: SlidingWindowCounterRateLimiter,
        item: RateLimitItemPerSecond,
        whose: tuple[str, str],
        per_s: float,
    ) -> None:
        if await limiter.hit(item, *whose):
            return
        free_at = (await limiter.get_window_stats(item, *whose)).reset_time
        again_s = min(max(1, math.ceil(free_at - time.time())), _WINDOW_S)
        raise RateLimited(
            f"This key may ask {per_s:g} times a second, over {_WINDOW_S} s, and did so. Ask again in {again_s} s.",
            again_s,
        )


class LimitRate:
    """ASGI middleware behind `api.auth`, which says who asks; before a byte of the body is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope.get("state", {}).get("caller")
        if caller is not None:
            try:
                await scope["app"].state.revln.rates.check(caller)
            except RateLimited as err:
                await problem_response(err, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)
