"""Removes what has had its time, slowly enough that nobody waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event

__all__ = ["in_steps"]

# How long one step may hold SQLite's only write lock. A submission waits for it; its own commit takes about as long.
_HOLD_S = 0.05
_LEAST, _FIRST, _MOST = 20, 100, 5_000


def in_steps(remove: Callable[[int], int], stop: Event) -> int:
    """Call ``remove(most)`` until it has removed nothing more, or ``stop`` is set; how many rows went.

    As many rows are asked for as went in 50 ms before, and the pause after a step is as long as the step.
    """
    total, most = 0, _FIRST
    while not stop.is_set():
        began = time.monotonic()
        removed = remove(most)
        took_s = time.monotonic() - began
        total += removed
        if not removed:
            break
        # Halved or doubled at most: one slow step may have waited for somebody else.
        most = max(_LEAST, min(_MOST, int(most * min(2.0, max(0.5, _HOLD_S / max(took_s, 1e-6))))))
        stop.wait(took_s)
    return total
