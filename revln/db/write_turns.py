"""Processes take turns at SQLite's only write lock, as threads of one process do.

SQLite waits by sleeping up to 100 ms and looking again. A process that writes all the time, as the API does while a
thousand jobs are handed in, then has the lock again before another one looks: a worker's ten chunks took 4.7 s beside
such a flood, and 1.0 s alone. With two locks in a row, whoever has the first is the next to have the second, and a
process that just wrote is behind it (a turnstile).

It is manners, no more: what keeps writes apart is SQLite's own lock, and a turn that does not come soon is not waited
for, because a process may be frozen (SIGSTOP) while it is the next.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["WriteTurns"]

_PATIENCE_S = 2.0
_WITHOUT_S = 10.0  # after a turn that did not come
_LOOK_S = 0.001


class WriteTurns:
    """For one thread of a process at a time; ``path`` is the database's file, beside which two empty ones are made."""

    def __init__(self, path: str, patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._paths = f"{path}-next", f"{path}-turn"
        self._without_until = 0.0

    @contextmanager
    def turn(self) -> Iterator[None]:
        with ExitStack() as ours:
            if time.monotonic() >= self._without_until and not self._taken(ours):
                self._without_until = time.monotonic() + _WITHOUT_S
            yield

    def _taken(self, ours: ExitStack) -> bool:
        """Whether it is our turn, until ``ours`` is closed."""
        give_up_at = time.monotonic() + self._patience_s
        try:
            with _opened(self._paths[0]) as following:
                if not _locked(following, give_up_at):
                    return False
                return _locked(ours.enter_context(_opened(self._paths[1])), give_up_at)
        except OSError:  # no files can be made there, or none locked
            return False


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """Closing it gives its lock back."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def _locked(file: int, give_up_at: float) -> bool:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                return False
            time.sleep(_LOOK_S)
        else:
            return True
