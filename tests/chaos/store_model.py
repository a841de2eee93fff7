"""What a chunk and a job are, in the plainest words: what `tests.chaos.store_machine` holds the store against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from revln.db.jobs.chunks import Claim
from revln.jobs.state import ChunkState, JobStatus, Tally, derive_status

__all__ = [
    "MAX_CRASHES",
    "Change",
    "Held",
    "ModelChunk",
    "ModelJob",
    "crashed",
    "died",
    "end_queued",
    "finished",
    "queued_again",
]

MAX_CRASHES = 3


@dataclass(slots=True)
class ModelChunk:
    n_items: int
    max_attempts: int
    state: ChunkState = ChunkState.QUEUED
    attempt: int = 0
    crashes: int = 0
    succeeded: int = 0
    failed: int = 0
    until: float = 0.0  # of its lease
    due: float = 0.0


Change = Callable[[ModelChunk], None]


@dataclass(slots=True)
class ModelJob:
    id: str
    chunks: list[ModelChunk]
    deadline: float | None
    started: bool = False
    canceled: bool = False  # somebody asked for it
    deleted: bool = False

    @property
    def status(self) -> JobStatus:
        states = Counter(str(chunk.state) for chunk in self.chunks)
        return derive_status(Tally(**states, items_succeeded=sum(chunk.succeeded for chunk in self.chunks)))


@dataclass(frozen=True, slots=True)
class Held:
    """A claim that somebody has, or once had: nobody who lost it knows that he did."""

    job: ModelJob
    claim: Claim

    @property
    def chunk(self) -> ModelChunk:
        return self.job.chunks[self.claim.number]

    @property
    def good(self) -> bool:
        chunk = self.chunk
        return not self.job.deleted and chunk.state is ChunkState.RUNNING and chunk.attempt == self.claim.attempt


def queued_again(job: ModelJob, due: float, *, uncounted: bool = False) -> Change:
    def change(chunk: ModelChunk) -> None:
        chunk.state = ChunkState.CANCELED if job.canceled else ChunkState.QUEUED
        chunk.due, chunk.max_attempts = due, chunk.max_attempts + uncounted

    return change


def crashed(job: ModelJob, now: float) -> Change:
    def change(chunk: ModelChunk) -> None:
        chunk.crashes += 1
        queued_again(job, now, uncounted=True)(chunk)
        if chunk.crashes >= MAX_CRASHES and not job.canceled:
            died(chunk)

    return change


def finished(failed: int) -> Change:
    def change(chunk: ModelChunk) -> None:
        chunk.state, chunk.succeeded, chunk.failed = ChunkState.SUCCEEDED, chunk.n_items - failed, failed

    return change


def died(chunk: ModelChunk) -> None:
    chunk.state, chunk.failed = ChunkState.DEAD, chunk.n_items - chunk.succeeded


def end_queued(job: ModelJob, end: ChunkState) -> None:
    for chunk in job.chunks:
        if chunk.state is ChunkState.QUEUED:
            chunk.state = end
