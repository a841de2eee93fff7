"""Which index a collection gets: by its size, and by the memory that it may take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from revln.errors import JobError
from revln.index.base import IndexType

__all__ = ["Plan", "make_plan"]

# Lists are this times √N. Of 200,000 vectors in a thousand clusters, 1,024 lists (2.3) searched 12 times as fast as
# IndexFlatIP at recall 0.96, 2,048 (4.6) 49 times at 0.97, 4,096 (9.2) 57 times at 0.98, for four times the training.
_LISTS = 6
_LINKS = 16  # M; the bottom layer has twice as many: 128 bytes a row
_CODE_DIMS = 4  # dimensions that one byte of a PQ code stands for
_LEAST_PQ_ROWS = 2_560  # ten times the 256 centroids of a code


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be built. ``factory`` is its name in faiss's own language."""

    kind: IndexType
    dim: int
    lists: int = 0
    links: int = 0
    code_bytes: int = 0

    @property
    def factory(self) -> str:
        match self.kind:
            case IndexType.FLAT:
                return "IDMap,Flat"
            case IndexType.HNSW:
                return f"IDMap,HNSW{self.links},Flat"
            case IndexType.IVF:
                return f"IDMap,IVF{self.lists},Flat"
            case IndexType.IVFPQ:
                return f"IDMap,IVF{self.lists},PQ{self.code_bytes}x8"

    def memory_bytes(self, count: int) -> int:
        """About what it takes in a worker: vectors or codes, links, ids, and where each row lies."""
        row = {
            IndexType.FLAT: 4 * self.dim + 8,
            IndexType.HNSW: 4 * self.dim + 8 * self.links + 32,
            IndexType.IVF: 4 * self.dim + 24,
            IndexType.IVFPQ: self.code_bytes + 24,
        }[self.kind]
        return count * row + self.lists * self.dim * 4


def make_plan(
    kind: IndexType | None, count: int, dim: int, *, flat_rows: int, memory_bytes: int, lists: int | None = None,
    links: int | None = None,
) -> Plan:  # fmt: skip
    """The plan for ``kind``, or for the first that fits where it is None.

    Raises:
        JobError: what was asked for takes too much memory, or has too few rows to learn from.
    """
    if kind is not None:
        plan = _plan(kind, count, dim, lists, links)
        if (needed := plan.memory_bytes(count)) > memory_bytes:
            raise JobError(
                f"An index of type {kind} over {count:,} vectors of {dim} takes about {needed / 2**20:,.0f} MiB; at "
                f"most {memory_bytes / 2**20:,.0f} MiB are allowed (REVLN_INDEX_MEMORY_BYTES). Ask for auto or "
                "ivfpq, or raise the limit."
            )
        return plan
    # Never HNSW: of 100,000 it took four times as long to build as IVF, and searched a quarter as fast.
    plan = _plan(IndexType.FLAT if count <= flat_rows else IndexType.IVF, count, dim, lists, links)
    if plan.memory_bytes(count) <= memory_bytes:
        return plan
    return make_plan(
        IndexType.IVFPQ, count, dim, flat_rows=flat_rows, memory_bytes=memory_bytes, lists=lists, links=links
    )


def _plan(kind: IndexType, count: int, dim: int, lists: int | None, links: int | None) -> Plan:
    match kind:
        case IndexType.FLAT:
            return Plan(kind, dim)
        case IndexType.HNSW:
            return Plan(kind, dim, links=links or _LINKS)
        case IndexType.IVF:
            return Plan(kind, dim, lists=_lists(count, lists))
        case IndexType.IVFPQ:
            if count < _LEAST_PQ_ROWS:
                raise JobError(
                    f"An index of type ivfpq learns its codes from at least {_LEAST_PQ_ROWS:,} vectors; there are "
                    f"{count:,}. Ask for flat or hnsw."
                )
            most = max(dim // _CODE_DIMS, 1)
            code_bytes = next(size for size in range(most, 0, -1) if dim % size == 0)
            return Plan(kind, dim, lists=_lists(count, lists), code_bytes=code_bytes)


def _lists(count: int, wanted: int | None) -> int:
    """Never so many that a list has under ten rows."""
    return max(1, min(wanted or round(_LISTS * math.sqrt(count)), count // 10))
