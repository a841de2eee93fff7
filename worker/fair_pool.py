"""Threads that tenants take turns at."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

__all__ = ["FairPool"]

_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class FairPool:
    """A thread pool whose next task is that of the tenant whose turn it is.

    In one line for all, sixty-four pictures that take a second each hold up everybody else's one.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._lock = Lock()
        self._waiting: OrderedDict[str, deque[_Task]] = OrderedDict()

    def submit(self, tenant: str, call: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            # Under the lock: what is in line is either run or canceled by `shutdown`.
            self._pool.submit(self._run_next)
            self._waiting.setdefault(tenant, deque()).append((future, call, args))
        return future

    def _run_next(self) -> None:
        with self._lock:
            if not self._waiting:  # canceled
                return
            tenant, line = next(iter(self._waiting.items()))
            future, call, args = line.popleft()
            self._waiting.move_to_end(tenant)
            if not line:
                del self._waiting[tenant]
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(call(*args))
        except BaseException as err:  # noqa: BLE001 - whoever waits for it is told, as by any executor
            future.set_exception(err)

    def shutdown(self) -> None:
        """Cancel what has not begun; wait for nothing."""
        with self._lock:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for line in self._waiting.values():
                for future, _, _ in line:
                    future.cancel()
                    future.set_running_or_notify_cancel()  # wakes who waits
            self._waiting.clear()
