"""The only declaration of a kind of job.

The request body's union, the queues, the worker's registration, the command line and the documentation are made from
this table. To add a kind: one pair of schemas, one line here, one handler in ``worker/handlers``, one test.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from revln.jobs.index_schemas import IndexInput, IndexResult
from revln.jobs.schemas import (
    CaptionInput,
    CaptionResult,
    EmbedInput,
    EmbedResult,
)
from revln.jobs.search_schemas import SearchInput, SearchResult

__all__ = ["KINDS", "JobKind", "Priority", "all_queues", "queue_name"]


class Priority(StrEnum):
    """A queue for each: Redis's own priorities starve strictly, so they are not used."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BULK = "bulk"


_LONG_S = 4 * 3600.0  # under REVLN_VISIBILITY_TIMEOUT_S, after which Redis delivers its message again


@dataclass(frozen=True, slots=True)
class JobKind:
    """One kind of job.

    Attributes:
        chunk_items: items in a chunk, the unit of delivery, lease, retry and progress. Large enough that Celery's
            2–4 ms a message vanish, small enough that a chunk ends well inside a lease and a crash repeats little.
        timeout_s: how long one chunk may run before it is given up.
        max_attempts: how often a chunk may fail before it is dead; with the back-off between them a blob store may be
            away for a minute. Crashes and outages of the database are not counted here.
        items_field: the input's field that holds what is cut into chunks.
        long_operations: those whose one chunk may run ``_LONG_S``.
        source_field: the input's field that names an uploaded file of them instead.
        whole_model: results hang on the whole model's fingerprint; else on its joint space's, as vectors do.
    """

    name: str
    input: type[BaseModel]
    result: type[BaseModel]
    chunk_items: int
    timeout_s: float
    max_attempts: int
    items_field: str = "items"
    source_field: str = "manifest"
    whole_model: bool = False
    long_operations: tuple[str, ...] = ()

    def runs_long(self, parameters: dict[str, Any]) -> bool:
        return parameters.get("operation") in self.long_operations

    def chunk_timeout_s(self, parameters: dict[str, Any]) -> float:
        return _LONG_S if self.runs_long(parameters) else self.timeout_s


KINDS: dict[str, JobKind] = {
    kind.name: kind
    for kind in (
        JobKind("embed", EmbedInput, EmbedResult, chunk_items=64, timeout_s=600, max_attempts=8),
        JobKind(
            "index",
            IndexInput,
            IndexResult,
            chunk_items=64,
            timeout_s=600,
            max_attempts=8,
            long_operations=("build", "duplicates", "migrate"),
        ),
        JobKind(
            "search", SearchInput, SearchResult, chunk_items=256, timeout_s=120, max_attempts=8, items_field="queries"
        ),
        JobKind(
            "caption", CaptionInput, CaptionResult, chunk_items=16, timeout_s=600, max_attempts=8, whole_model=True
        ),
    )
}


def queue_name(kind: str, priority: str) -> str:
    return f"{kind}.{priority}"


def all_queues() -> list[str]:
    """Every queue there is, interactive first."""
    return [queue_name(kind, priority) for priority in Priority for kind in KINDS]
