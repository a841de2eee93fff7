"""What jobs declare: how they are cut into chunks, how long one may run, whose vectors they are about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto

from revln.jobs.schemas import Parameters

__all__ = ["ModelOf", "Operation"]

LONG_S = 4 * 3600.0  # under REVLN_VISIBILITY_TIMEOUT_S, after which Redis delivers its message again


class ModelOf(StrEnum):
    """Which model a job runs on, and which of its two fingerprints the job carries."""

    VECTORS = auto()  # the collection's, else the one named, else the default; the fingerprint of its joint space
    NEXT = auto()  # the one named, which is to replace the collection's; the fingerprint of its joint space
    WHOLE = auto()  # one that captions, whatever made the collection; the fingerprint of the whole model


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing that jobs do: all that a kind does, or one operation of a kind that has several.

    Attributes:
        name: names its handler in ``worker/handlers/registry.py``.
        parameters: what its jobs keep of their input, and its handler is given.
        items_field: the input's field that holds what is cut into chunks. A job without it and without a manifest has
            one chunk of one item, None: what there is to be done is known when it runs.
        chunk_items: items in a chunk, the unit of delivery, lease, retry and progress. Large enough that Celery's
            2-4 ms a message vanish, small enough that a chunk ends well inside a lease and a crash repeats little.
        written_chunk_items: the same where items bring their vectors and are only written down.
        timeout_s: how long one chunk may run before it is given up.
        open_ended: its result is a report of any length, not one entry for each item.
        model: which model it runs on.
        needs_model: False if it can be done in a collection of the user's own vectors.
        changes_collection: workers that hold the collection's index are told when a chunk has ended.
        makes_vectors: each entry of its result has a vector.
    """

    name: str
    parameters: type[Parameters]
    items_field: str = "items"
    chunk_items: int = 64
    written_chunk_items: int | None = None
    timeout_s: float = 600.0
    open_ended: bool = False
    model: ModelOf = ModelOf.VECTORS
    needs_model: bool = False
    changes_collection: bool = False
    makes_vectors: bool = False

    @property
    def runs_long(self) -> bool:
        return self.timeout_s >= LONG_S
