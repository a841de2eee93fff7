"""/v1/jobs/{id}/chunks: how a job is being done, piece by piece."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.access import OwnJob
from api.answers import ChunkPage
from api.paging import cut, decode_cursor
from api.state import State
from revln.db.jobs.chunk_list import ChunkInfo
from revln.db.jobs.chunk_list import list_chunks as read_chunks
from revln.jobs.state import ChunkState
from revln.timestamps import timestamp

__all__ = ["router"]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get(
    "/{job_id}/chunks", summary="List a job's chunks: tries, crashes, errors", responses={200: {"model": ChunkPage}}
)
def list_chunks(
    job: OwnJob,
    state: State,
    chunk_state: Annotated[ChunkState | None, Query(alias="state", description="`dead` lists dead letters.")] = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    cursor: str | None = None,
) -> dict[str, Any]:
    position = decode_cursor(cursor, int)
    with state.db.read() as connection:
        found = read_chunks(connection, job.id, limit + 1, position[0] if position else -1, chunk_state)
    page, more = cut(found, limit, lambda chunk: [chunk.number])
    return {"chunks": [_view(chunk) for chunk in page], "next_cursor": more}


def _view(chunk: ChunkInfo) -> dict[str, Any]:
    waits = chunk.state == ChunkState.QUEUED
    return {
        "number": chunk.number,
        "state": chunk.state,
        "first_index": chunk.first_index,
        "counts": {"total": chunk.n_items, "succeeded": chunk.succeeded, "failed": chunk.failed},
        "attempt": chunk.attempt,
        "attempts_left": max(0, chunk.max_attempts - chunk.attempt),
        "crashes": chunk.crash_count,
        "worker": chunk.worker,
        "run_at": timestamp(chunk.run_at) if waits else None,
        "lease_until": timestamp(chunk.lease_until),
        "started_at": timestamp(chunk.started_at),
        "finished_at": timestamp(chunk.finished_at),
        "error": chunk.error,
    }
