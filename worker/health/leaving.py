"""How a worker ends where waiting for its threads would be waiting for ever."""

from __future__ import annotations

import faulthandler
import logging
import os
from collections.abc import Callable, Collection, Sequence
from threading import Thread, Timer
from typing import NoReturn

from revln.errors import RevlnError
from worker.health.watchdog import STDERR, Waiting, Work
from worker.leases import LeaseKeeper

__all__ = ["Leaving"]

log = logging.getLogger(__name__)

HUNG, DEAF = 70, 75  # exit codes, of sysexits.h: a fault in the software, a failure that another try may mend
_FALLEN_S = 5.0  # of a worker whose Celery has failed, for short work to end
_LAST_S = 5.0  # for the database to hear of it


class Leaving:
    """Ends this process. ``say_goodbye`` deletes the worker's row."""

    def __init__(self, leases: LeaseKeeper, say_goodbye: Callable[[], None], grace_s: float) -> None:
        self._leases, self._say_goodbye, self._grace_s = leases, say_goodbye, grace_s

    def now(self, code: int, hung: Collection[Waiting] = ()) -> NoReturn:
        """End this process now; who supervises it starts another.

        The chunks in ``hung`` are charged a crash, so that each runs alone the next time; all others are handed back.
        If the database does not hear of it in time, the leases run out.
        """
        last = Thread(target=self._hand_back, args=(hung,), name="goodbye", daemon=True)
        last.start()
        last.join(_LAST_S)
        os._exit(code)  # its threads cannot be stopped in any other way; their writes are fenced off

    def in_time(self, code: int = 0) -> None:
        """Celery's threads pool waits for running tasks without limit; we hand them back when the grace is over.

        With a code other than 0 it was not asked to stop but fell over: as it fetches nothing any more, it must go
        soon.
        """
        timer = Timer(min(self._grace_s, _FALLEN_S) if code else self._grace_s, self.now, (code,))
        timer.daemon = True
        timer.start()

    def hung(self, works: Sequence[Work]) -> NoReturn:
        log.critical("this worker ends itself, because this hangs: %s", "; ".join(work.what for work in works))
        faulthandler.dump_traceback(STDERR, all_threads=True)
        self.now(HUNG, {one for work in works for one in work.waiting})

    def deaf(self) -> NoReturn:
        self.now(DEAF)

    def _hand_back(self, hung: Collection[Waiting]) -> None:
        try:
            log.warning("%d chunks given back", self._leases.hand_back(hung))
            self._say_goodbye()
        except RevlnError as err:
            log.warning("the worker's row is still there: %s", err)
