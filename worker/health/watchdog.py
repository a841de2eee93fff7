"""Notices work that hangs: a forward pass, a preparation, a chunk's own thread.

Celery's time limits do not hold in its pool of threads [measured], and a deadline that is looked at between two batches
is of no use where a batch never ends. No thread can be stopped from outside, so the process has to go, and whoever
supervises it starts another.

How long a good forward pass takes nobody knows: a hundred captions on an old processor take minutes. So what counts is
whether the thread still moves: whether its innermost call is another one than at the last look. That costs the work
nothing.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock, get_ident
from types import FrameType
from typing import Protocol

from worker.loop import Loop

__all__ = ["STDERR", "Waiting", "Watchdog", "Work"]

log = logging.getLogger(__name__)

STDERR = 2  # Celery puts a proxy without a file descriptor in the place of sys.stderr
_LOOK_S = 1.0
_YOUNG_S = 1.0  # the frame of a call keeps its tensors alive for as long as we hold it
_LATE_S = 10.0  # past the moment at which the last who waited for it has given up
STILL_S = 10.0  # how long a single call of a forward pass or of a preparation may take once nobody waits for it
STILL_IN_SQL_S = 45.0  # a chunk's own thread may also stand in line for a lock of the database, for 30 s


class Waiting(Protocol):
    """Who waits for a piece of work: a lease."""

    @property
    def give_up_at(self) -> float: ...

    def progress(self) -> None: ...


class Work:
    """Something that one thread does and that may hang."""

    def __init__(
        self,
        what: str,
        waiting: Sequence[Waiting],
        in_line: Callable[[], Iterable[Waiting]] | None = None,
        still_s: float = STILL_S,
        young_s: float = _YOUNG_S,
    ) -> None:
        self.what, self.waiting = what, waiting
        self._in_line, self._still_s, self._young_s = in_line, still_s, young_s
        self._thread = get_ident()
        self._began_at = self._moved_at = time.monotonic()
        self._frame: FrameType | None = None

    def look(self, now: float, frame: FrameType | None) -> None:
        """See whether it has moved, and tell those who wait for it, or in line behind it."""
        moved = now - self._began_at < self._young_s
        if not moved:
            moved = self._frame is not None and frame is not self._frame
            self._frame = frame
        if moved:
            self._moved_at = now
            if self._in_line is not None:
                for one in (*self.waiting, *self._in_line()):
                    one.progress()

    def hangs(self, now: float, stall_s: float) -> bool:
        still_s = now - self._moved_at
        late_s = now - max((one.give_up_at for one in self.waiting), default=math.inf)
        if still_s >= stall_s or (late_s >= _LATE_S and still_s >= self._still_s):
            return True
        # It runs in circles. (A chunk's own thread may: it waits for a database that is away.)
        return self._in_line is not None and late_s >= stall_s

    def forget(self) -> None:
        self._frame = None

    @property
    def thread(self) -> int:
        return self._thread


class Watchdog(Loop):
    """Looks every second.

    Args:
        stall_s: how long anything may stand still, even if somebody would wait for it for longer.
        young_s: how old work must be to be looked at.
        on_hang: is called once, with what hangs, and should not return.
    """

    def __init__(self, stall_s: float, on_hang: Callable[[list[Work]], object], young_s: float = _YOUNG_S) -> None:
        super().__init__("watchdog", _LOOK_S, self._judge)
        self._stall_s, self._on_hang, self._young_s = stall_s, on_hang, young_s
        self._works: set[Work] = set()
        self._lock = Lock()

    def stop(self) -> None:
        super().stop()
        faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def forward(
        self, what: str, waiting: Sequence[Waiting], in_line: Callable[[], Iterable[Waiting]] = lambda: ()
    ) -> Iterator[None]:
        """Of work whose moving is progress of those who wait for it, and of those in line behind it."""
        with self._watched(Work(what, waiting, in_line, young_s=self._young_s)):
            yield

    @contextmanager
    def chunk(self, what: str, waiting: Waiting) -> Iterator[None]:
        """Of a chunk's own thread, which mostly waits for others and so always moves."""
        with self._watched(Work(what, [waiting], still_s=STILL_IN_SQL_S, young_s=self._young_s)):
            yield

    @contextmanager
    def _watched(self, work: Work) -> Iterator[None]:
        with self._lock:
            self._works.add(work)
        try:
            yield
        finally:
            with self._lock:
                self._works.discard(work)
            work.forget()

    def look(self) -> list[Work]:
        """One look at everything; what hangs."""
        with self._lock:
            works = list(self._works)
        now, frames = time.monotonic(), sys._current_frames()
        for work in works:
            work.look(now, frames.get(work.thread))
        return [work for work in works if work.hangs(now, self._stall_s)]

    def _judge(self) -> None:
        # Native code that hangs and keeps the interpreter's lock stops us, too: a thread of C ends the process.
        faulthandler.dump_traceback_later(self._stall_s, exit=True, file=STDERR)
        if hanging := self.look():
            self.halt()
            self._on_hang(hanging)
