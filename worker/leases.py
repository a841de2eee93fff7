"""The chunks that this process holds, and the thread that keeps them.

A lease is renewed only while its chunk makes progress: a hung job would else keep its lease for ever.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from threading import Lock

from revln.db.engine import Database
from revln.db.jobs.chunks import Claim, heartbeat, release_chunk
from revln.db.jobs.crashes import charge_crash
from revln.db.jobs.read import cancel_requested
from revln.errors import DeadlineExceeded, JobCanceled, LeaseLost, RevlnError, TimedOut
from revln.settings import Settings
from worker.loop import Loop

__all__ = ["Lease", "LeaseKeeper"]

log = logging.getLogger(__name__)

_CANCEL_POLL_S = 1.0
_HUNG = TimedOut("Its work hung in the worker, which ended itself.")


class Lease:
    """One running chunk, as its handler sees it: is there still a reason to go on?"""

    def __init__(self, claim: Claim, timeout_s: float) -> None:
        self.claim = claim
        self.lost = False
        self.canceled = claim.job.cancel_requested_at is not None
        started = time.monotonic()
        self._timeout_at = started + timeout_s
        self._timeout_s = timeout_s
        self._deadline_at = None if claim.deadline_in_s is None else started + claim.deadline_in_s
        self.progress_at = started

    @property
    def give_up_at(self) -> float:
        """When, by `time.monotonic`, nobody waits for its work any more."""
        return self._timeout_at if self._deadline_at is None else min(self._timeout_at, self._deadline_at)

    def progress(self) -> None:
        """Say that the chunk is alive; called whenever an item is done."""
        self.progress_at = time.monotonic()

    def keep_waiting(self) -> None:
        """For work that others do for this chunk: a model's download may take longer than a chunk may stall.

        Raises as `check`.
        """
        self.progress()
        self.check()

    def check(self) -> None:
        """Called at every batch boundary.

        Raises:
            LeaseLost: somebody else holds the chunk.
            JobCanceled: the user does not want it any more.
            DeadlineExceeded: the job's deadline passed.
            TimedOut: the chunk ran longer than its kind allows; it is tried again, alone.
        """
        now = time.monotonic()
        if self.lost:
            raise LeaseLost
        if self.canceled:
            raise JobCanceled
        if self._deadline_at is not None and now > self._deadline_at:
            raise DeadlineExceeded
        if now > self._timeout_at:
            raise TimedOut(f"The chunk ran longer than the {self._timeout_s:g} s that its kind allows.")


class LeaseKeeper(Loop):
    """Renews leases and looks for cancellations, in one thread for the process."""

    def __init__(self, settings: Settings, db: Database, on_beat: Callable[[], None]) -> None:
        super().__init__("heartbeat", _CANCEL_POLL_S, self._look, patience_s=settings.heartbeat_s)
        self._settings = settings
        self._db = db
        self._on_beat = on_beat
        self._leases: dict[tuple[str, int], Lease] = {}
        self._lock = Lock()
        self._beat_at = 0.0

    @contextmanager
    def hold(self, claim: Claim, timeout_s: float) -> Iterator[Lease]:
        """Keep a claimed chunk's lease alive inside the block."""
        lease = Lease(claim, timeout_s)
        with self._lock:
            self._leases[claim.key] = lease
        try:
            yield lease
        finally:
            with self._lock:
                self._leases.pop(claim.key, None)

    def hand_back(self, hung: Collection[object] = ()) -> int:
        """Give every chunk back to the queue, because this worker is going; how many.

        Uncounted, but for those that hang: they are charged a crash.
        """
        given = 0
        for lease in self._snapshot():
            lease.lost = True
            try:
                if lease in hung:
                    charge_crash(self._db, lease.claim, _HUNG, self._settings.max_crashes)
                else:
                    release_chunk(self._db, lease.claim, error=None, delay_s=0.0, counted=False)
                given += 1
            except RevlnError as err:
                log.warning("chunk %s.%d not handed back: %s", *lease.claim.key, err)
        return given

    def _snapshot(self) -> list[Lease]:
        with self._lock:
            return list(self._leases.values())

    def _look(self) -> None:
        self._look_for_cancellations()
        if time.monotonic() >= self._beat_at:
            self._beat_at = time.monotonic() + self._settings.heartbeat_s
            self._on_beat()
            self._renew()

    def failed(self, err: Exception) -> None:
        if isinstance(err, RevlnError):
            # The database is away. As soon as it is back the leases are renewed, before a sweeper looks at them.
            self._beat_at = 0.0

    def _look_for_cancellations(self) -> None:
        leases = self._snapshot()
        if not leases:
            return
        with self._db.read() as connection:
            wanted = cancel_requested(connection, {lease.claim.job.id for lease in leases})
        for lease in leases:
            if lease.claim.job.id in wanted:
                lease.canceled = True

    def _renew(self) -> None:
        now = time.monotonic()
        alive = [lease for lease in self._snapshot() if now - lease.progress_at < self._settings.stall_s]
        if not alive:
            return
        answers = heartbeat(self._db, [lease.claim for lease in alive], self._settings.lease_s)
        for lease, held in zip(alive, answers, strict=True):
            if not held:
                lease.lost = True
