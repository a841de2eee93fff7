"""A background thread of the worker: it calls its steps at intervals, from `start` to `stop`.

Shaped like river's ``startstop``: whatever runs in the background starts, is asked to stop, and stops in one way.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from threading import Event, Thread, current_thread

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from revln.errors import RevlnError

__all__ = ["Loop"]

log = logging.getLogger(__name__)

# Another part is away, and its name says it all. Whatever else is raised is a fault of ours, logged with its traceback.
_EXPECTED = (RevlnError, RedisError, OperationalError, OSError)
_PATIENCE_S = 5.0  # for a step to end when the worker stops; then it is left to the end of the process


class Loop:
    """Calls each of ``steps`` every ``every_s`` seconds, for the first time after ``first_s``.

    A step that raises is logged, once for as long as it fails in the same way; the other steps and the next round come
    all the same.

    Args:
        jitter: a share of ``every_s`` by which rounds come sooner or later, so that many workers do not act at once.
        patience_s: how long `stop` waits for the step that runs; None for as long as it takes.
    """

    def __init__(
        self,
        name: str,
        every_s: float,
        *steps: Callable[[], object],
        first_s: float | None = None,
        jitter: float = 0.0,
        patience_s: float | None = _PATIENCE_S,
    ) -> None:
        self.name = name
        self.stopping = Event()  # for steps that take long
        self._every_s, self._steps, self._jitter, self._patience_s = every_s, steps, jitter, patience_s
        self._first_s = self._pause_s() if first_s is None else first_s
        self._due = Event()
        self._said: dict[int, str] = {}  # the last failure of each step that fails, by its place
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Have the next round now, or as soon as the one that runs is over."""
        self._due.set()

    def halt(self) -> None:
        """Begin no further step; returns at once."""
        self.stopping.set()
        self.wake()

    def stop(self) -> None:
        """Begin no further step, and wait for the one that runs. Does nothing more if it was never started."""
        self.halt()
        if self._thread.is_alive() and self._thread is not current_thread():
            self._thread.join(self._patience_s)

    def failed(self, err: Exception) -> None:
        """Called with what a step raised; to be overridden."""

    def _run(self) -> None:
        pause_s = self._first_s
        while True:
            self._due.wait(pause_s)
            self._due.clear()
            for at, step in enumerate(self._steps):
                if self.stopping.is_set():
                    return
                self._call(at, step)
            pause_s = self._pause_s()

    def _pause_s(self) -> float:
        return self._every_s * random.uniform(1 - self._jitter, 1 + self._jitter)  # noqa: S311

    def _call(self, at: int, step: Callable[[], object]) -> None:
        try:
            step()
            said = ""
        except Exception as err:  # a round ends here; the next one comes
            said = err.message if isinstance(err, RevlnError) else f"{type(err).__name__}: {err}"
            self.failed(err)
            if said != self._said.get(at):
                log.warning("%s: %s", self.name, said, exc_info=None if isinstance(err, _EXPECTED) else err)
        if not said and self._said.get(at):
            log.warning("%s: works again", self.name)
        self._said[at] = said
