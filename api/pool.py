"""A few threads for what takes long, such as a picture, so that no tenant's work stands in the way of anybody else's.

Routes share one pool of threads (`REVLN_API_THREADS`). A hundred thumbnails of a large picture once took all of them:
lists, submissions and even ``/healthz`` waited for 100 s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from revln.errors import Unavailable

__all__ = ["SlowWork"]

_T = TypeVar("_T")


@dataclass(slots=True)
class _Tenant:
    threads: CapacityLimiter
    inside: int = field(default=0)  # running and waiting


class SlowWork:
    """Used by the event loop's thread alone; what it runs has a thread of this pool's own.

    Of ``threads`` one is always left to other tenants. Those who wait take no thread, and are ``waiting`` a tenant at
    most.
    """

    def __init__(self, what: str, threads: int, waiting: int) -> None:
        self._what = what
        self._threads = CapacityLimiter(threads)
        self._share = max(1, threads - 1)
        self._waiting = waiting
        self._tenants: dict[str, _Tenant] = {}

    async def run(self, tenant: str, call: Callable[[], _T]) -> _T:
        """Run ``call`` in a thread, and return what it returns.

        Raises:
            Unavailable: too much of the tenant's waits already.
        """
        own = self._tenants.setdefault(tenant, _Tenant(CapacityLimiter(self._share)))
        if own.inside >= self._share + self._waiting:
            raise Unavailable(
                f"{own.inside} {self._what} of yours are in work or wait, the most that may at once. Send this one "
                "again in a moment."
            )
        own.inside += 1
        try:
            async with own.threads:
                return await run_sync(call, limiter=self._threads)
        finally:
            own.inside -= 1
            if not own.inside:
                del self._tenants[tenant]
