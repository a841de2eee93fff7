"""Rings the doorbell after a commit, off the request path: a submission is accepted with Redis down.

What cannot be published now is published by a sweeper, which finds it in SQL.
"""

from __future__ import annotations

import logging
from queue import SimpleQueue
from threading import Thread

from revln.broker import Dispatcher

__all__ = ["Publisher"]

log = logging.getLogger(__name__)


class Publisher:
    """One thread that publishes what submissions ask for."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._asked: SimpleQueue[tuple[str, str] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return once what was asked for has been tried, or after five seconds."""
        self._asked.put(None)
        self._thread.join(timeout=5.0)

    def publish(self, queue: str) -> None:
        """Ask for a queue's waiting chunks to be published soon."""
        self._asked.put(("publish", queue))

    def announce(self, job_id: str) -> None:
        """Ask for a job's change to be called out soon."""
        self._asked.put(("announce", job_id))

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            what, name = asked
            try:
                if what == "publish":
                    self._dispatcher.dispatch(name)
                else:
                    self._dispatcher.announce(name)
            except Exception as err:  # noqa: BLE001 - whatever it is, the rows are committed and the sweeper comes
                log.warning("not published now, the sweeper will: %s: %s", type(err).__name__, err)
