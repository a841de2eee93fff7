"""The only declaration of a kind of job.

The request body's union, the queues, the worker's registration, the command line and the documentation are made from
this table. To add a kind: one pair of schemas, one line here, one handler in ``worker/handlers``, one test. To add an
operation to `index` is the same (`revln.jobs.index_schemas`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from revln.jobs.caption_schemas import CaptionInput, CaptionParameters, CaptionResult
from revln.jobs.index_schemas import INDEX_OPERATIONS, IndexInput, IndexParameters, IndexResult
from revln.jobs.schemas import (
    EmbedInput,
    EmbedParameters,
    EmbedResult,
    JobResult,
    ModelOf,
    Operation,
)
from revln.jobs.search_schemas import SearchInput, SearchParameters, SearchResult

__all__ = ["KINDS", "JobKind", "Priority", "all_queues", "queue_name"]


class Priority(StrEnum):
    """A queue for each: Redis's own priorities starve strictly, so they are not used."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BULK = "bulk"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobKind(Operation):
    """One kind of job, which is an operation of its own, or has several that its input's ``operation`` chooses from.

    Attributes:
        max_attempts: how often a chunk may fail before it is dead; with the back-off between them a blob store may be
            away for a minute. Crashes and outages of the database are not counted here.
    """

    input: type[BaseModel]
    result: type[JobResult]
    max_attempts: int = 8
    operations: Mapping[str, Operation] = field(default_factory=dict)

    def operation(self, given: Mapping[str, Any]) -> Operation:
        """Return what a job with this input does."""
        return self.operations.get(given.get("operation", ""), self)


KINDS: dict[str, JobKind] = {
    kind.name: kind
    for kind in (
        JobKind(
            name="embed", input=EmbedInput, parameters=EmbedParameters, result=EmbedResult, needs_model=True,
            makes_vectors=True,
        ),
        JobKind(
            name="index", input=IndexInput, parameters=IndexParameters, result=IndexResult, operations=INDEX_OPERATIONS
        ),
        JobKind(
            name="search", input=SearchInput, parameters=SearchParameters, result=SearchResult, items_field="queries",
            chunk_items=256, timeout_s=120,
        ),
        JobKind(
            name="caption", input=CaptionInput, parameters=CaptionParameters, result=CaptionResult, chunk_items=16,
            model=ModelOf.WHOLE, needs_model=True,
        ),
    )
}  # fmt: skip


def queue_name(kind: str, priority: str) -> str:
    return f"{kind}.{priority}"


def all_queues() -> list[str]:
    """Every queue there is, interactive first."""
    return [queue_name(kind, priority) for priority in Priority for kind in KINDS]
