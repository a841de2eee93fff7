"""Vectors that this process computes at this moment."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Lock
from typing import Any

__all__ = ["InFlight"]


class InFlight:
    """Who is computing which vector right now, so that nobody computes it a second time."""

    def __init__(self) -> None:
        self._futures: dict[tuple[str, str], Future[Any]] = {}
        self._lock = Lock()

    def claim(self, fingerprint: str, key: str) -> tuple[Future[Any], bool]:
        """The future of this vector, and whether the caller is the one to fill it."""
        with self._lock:
            known = self._futures.get((fingerprint, key))
            if known is not None:
                return known, False
            mine: Future[Any] = Future()
            self._futures[fingerprint, key] = mine
            return mine, True

    def done(self, fingerprint: str, key: str) -> None:
        with self._lock:
            self._futures.pop((fingerprint, key), None)
