"""Which receivers may be asked now: so many at once, and after a failure not before a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

__all__ = ["Lanes"]

_SHUT_FIRST_S = 5.0
_SHUT_MOST_S = 300.0
_SHUT_LISTED = 10_000  # as many as a query may name; whoever makes more of them than that has some asked too soon


@dataclass
class _Lane:
    under_way: int = 0
    failures: int = 0  # in a row
    shut_until: float = 0.0


class Lanes:
    """Thread-safe. A lane is a tenant's receiver: one scheme, host and port.

    A thousand events for a receiver that is down would each have a thread wait for it. So a lane that does not answer,
    or says that it has too much to do, is shut for a time that doubles, and is then asked by one delivery at a time
    until it answers again.
    """

    def __init__(self, room: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.room = room
        self._clock = clock
        self._lanes: dict[str, _Lane] = {}
        self._lock = Lock()

    def rooms(self) -> dict[str, int]:
        """How many more each lane may have that is not as good as new."""
        with self._lock:
            return {name: (1 if lane.failures else self.room) - lane.under_way for name, lane in self._lanes.items()}

    def shut(self) -> list[str]:
        with self._lock:
            now = self._clock()
            shut = [name for name, lane in self._lanes.items() if lane.shut_until > now]
        return shut[:_SHUT_LISTED]

    def begin(self, name: str) -> None:
        with self._lock:
            self._lanes.setdefault(name, _Lane()).under_way += 1

    def end(self, name: str, *, overloaded: bool, asked_s: float = 0.0) -> None:
        """``overloaded``: it did not answer, or asked for less. ``asked_s``: for how long, if it said so."""
        with self._lock:
            lane = self._lanes[name]
            lane.under_way -= 1
            if overloaded:
                pause_s = min(_SHUT_FIRST_S * 2**lane.failures, _SHUT_MOST_S)
                lane.failures = min(lane.failures + 1, 16)
                lane.shut_until = self._clock() + min(max(pause_s, asked_s), 86_400.0)
            else:
                lane.failures, lane.shut_until = 0, 0.0
            self._forget_the_quiet()

    def _forget_the_quiet(self) -> None:
        """Strangers name any number of hosts: what was last shut long ago is as good as new."""
        long_ago = self._clock() - _SHUT_MOST_S
        for name, lane in list(self._lanes.items()):
            if not lane.under_way and lane.shut_until < long_ago:
                del self._lanes[name]
