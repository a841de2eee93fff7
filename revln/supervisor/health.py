"""Whether a part that runs is well. One that is frozen, or stuck in native code, cannot end itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Checkup"]

CHECK_S = 10.0
CHECKS = 3  # in a row: a machine that was suspended wakes up with every heartbeat old


class Checkup:
    """Asks ``check``, in a thread of its own because it may block, what is wrong with a process; "": nothing."""

    def __init__(self, check: Callable[[int], str]) -> None:
        self._check = check
        self._next_at = 0.0
        self._asking = False
        self._complaints: list[tuple[int, str]] = []

    def look(self, pid: int) -> str:
        """Why this process should be killed, if it should."""
        complaints = [what for whose, what in self._complaints if whose == pid]
        if len(complaints) >= CHECKS:
            self._complaints = []
            return complaints[-1]
        if not self._asking and time.monotonic() >= self._next_at:
            self._next_at, self._asking = time.monotonic() + CHECK_S, True
            threading.Thread(target=self._ask, args=(pid,), name="checkup", daemon=True).start()
        return ""

    def _ask(self, pid: int) -> None:
        try:
            complaint = self._check(pid)
        except Exception:  # noqa: BLE001 - who cannot be asked has no complaint
            complaint = ""
        self._complaints = [*self._complaints, (pid, complaint)] if complaint else []
        self._asking = False
