"""The life of a job and of a chunk, as pure functions: no clock, no database.

    job    queued → running → succeeded | failed | canceled | expired     retry: any end → queued | running
    chunk  queued → running → succeeded | dead | canceled | expired       hand-back, lost lease: running → queued

A job's status is derived from its chunks' counts, so the two can never disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

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
    # Queued again: its only chunk was handed back, or its worker was lost.
    JobStatus.RUNNING: frozenset({JobStatus.QUEUED}) | _ENDS,
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
    """How many of a job's chunks are in each state, and how many of its items are done or have failed."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    dead: int = 0
    canceled: int = 0
    expired: int = 0
    items_succeeded: int = 0
    items_failed: int = 0

    def move(self, was: ChunkState, to: ChunkState, chunks: int = 1) -> Self:
        """Return the tally after so many chunks went from one state to another."""
        assert to in CHUNK_TRANSITIONS[was], f"a chunk cannot go from {was} to {to}"
        return self.add(was, -chunks).add(to, chunks)

    def add(self, state: ChunkState, chunks: int) -> Self:
        """Return the tally with so many more chunks in a state; below zero: with fewer."""
        return replace(self, **{state.value: getattr(self, state) + chunks})

    def count(self, succeeded: int = 0, failed: int = 0) -> Self:
        """Return the tally with so many more items that are done, and that have failed."""
        return replace(self, items_succeeded=self.items_succeeded + succeeded, items_failed=self.items_failed + failed)

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
