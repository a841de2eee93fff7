"""Which chunk a message leads to: the one whose turn it is in that queue (`revln.db.jobs.turns`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from revln.db.engine import Database
from revln.db.jobs.turns import Turn, due, queue_of
from revln.jobs.kinds import KINDS

__all__ = ["Turns", "runs_long"]

Address = tuple[str, int]  # of a chunk: its job's id, and its number


def runs_long(turn: Turn) -> bool:
    return KINDS[turn.kind].operation(turn.input).runs_long


class Turns:
    """Gives the threads of one process different chunks, so that they do not all try to claim the same one.

    Workers beside each other still may; then one of them has the next. Half of the threads are never given chunks that
    may run for hours, so that whatever else waits goes on.
    """

    def __init__(self, db: Database, threads: int) -> None:
        self._db = db
        self._look_at = 2 * threads
        self._most_long = max(1, threads // 2)
        self._long = 0
        self._chosen: set[Address] = set()
        self._lock = Lock()

    @contextmanager
    def next(self, rung_by: Address) -> Iterator[Turn | None]:
        """The chunk to claim now and to run until this ends; None if nothing waits in that message's queue."""
        with self._db.read() as connection:
            queue = queue_of(connection, *rung_by)
            waiting = due(connection, queue, self._look_at) if queue is not None else []
        with self._lock:
            turn = next((turn for turn in waiting if self._is_free(turn)), None)
            if turn is not None:
                self._chosen.add(turn.address)
                self._long += runs_long(turn)
        try:
            yield turn
        finally:
            if turn is not None:
                self.claimed(turn)
                with self._lock:
                    self._long -= runs_long(turn)

    def claimed(self, turn: Turn) -> None:
        """It is ours, or somebody else's: no thread will find it queued any more."""
        with self._lock:
            self._chosen.discard(turn.address)

    def _is_free(self, turn: Turn) -> bool:
        return turn.address not in self._chosen and (self._long < self._most_long or not runs_long(turn))
