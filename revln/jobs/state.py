"""The life of a job and of a chunk, as pure functions: no clock, no database.

    job    queued → running → succeeded | failed | canceled | expired     retry: any end → queued | running
    chunk  queued → running → succeeded | dead | canceled | expired       hand-back, lost lease: running → queued

A job's status is derived from its chunks' counts, so the two can never disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "CHUNK_TRANSITIONS",
    "JOB_TRANSITIONS",
    "ChunkState",
    "JobStatus",
    "Tally",
    "can_change",
    "derive_status",
]


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def done(self) -> bool:
        """Whether the job has ended: nothing changes any more unless somebody asks for a retry."""
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


class ChunkState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # its items' results are written; some may be errors
    DEAD = "dead"  # given up: it killed its worker, or failed on every attempt
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def done(self) -> bool:
        return self not in (ChunkState.QUEUED, ChunkState.RUNNING)


_ENDS = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED, JobStatus.EXPIRED})

JOB_TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING}) | _ENDS,
    JobStatus.RUNNING: _ENDS,
    # A retry: running at once if some of its chunks stay done.
    **{end: frozenset({JobStatus.QUEUED, JobStatus.RUNNING}) for end in _ENDS},
}

CHUNK_TRANSITIONS: dict[ChunkState, frozenset[ChunkState]] = {
    ChunkState.QUEUED: frozenset({ChunkState.RUNNING, ChunkState.CANCELED, ChunkState.EXPIRED, ChunkState.DEAD}),
    ChunkState.RUNNING: frozenset(set(ChunkState)),
    **{end: frozenset({ChunkState.QUEUED}) for end in ChunkState if end.done},
}


def can_change(old: JobStatus, new: JobStatus) -> bool:
    """Whether a job may go from one status to another; staying put is always allowed."""
    return old == new or new in JOB_TRANSITIONS[old]


@dataclass(frozen=True, slots=True)
class Tally:
    """How many of a job's chunks are in each state, and how many of its items are done."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    dead: int = 0
    canceled: int = 0
    expired: int = 0
    items_succeeded: int = 0

    @property
    def open(self) -> int:
        return self.queued + self.running

    @property
    def total(self) -> int:
        return self.open + self.succeeded + self.dead + self.canceled + self.expired


def derive_status(tally: Tally) -> JobStatus:
    """The status that a job with these chunks has.

    A job with bad items still succeeds, each bad item carrying its own error; it fails when nothing could be done.
    A chunk that was canceled or expired decides the end even if other chunks were finished, because the job as it was
    asked for was not carried out.
    """
    if tally.open:
        started = tally.total > tally.queued
        return JobStatus.RUNNING if started else JobStatus.QUEUED
    if tally.expired:
        return JobStatus.EXPIRED
    if tally.canceled:
        return JobStatus.CANCELED
    return JobStatus.SUCCEEDED if tally.items_succeeded else JobStatus.FAILED
