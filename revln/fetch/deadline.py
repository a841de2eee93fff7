"""The time that one fetch may take, whatever it does with it."""

from __future__ import annotations

import time

import httpcore

__all__ = ["Deadline"]


class Deadline:
    """One moment for everything that one fetch does."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, more than 0.

        Raises:
            httpcore.ReadTimeout: none are.
        """
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise httpcore.ReadTimeout("the deadline passed")
        return seconds
