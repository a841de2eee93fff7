"""/v1/jobs/{id}/chunks: how a job is being done, piece by piece."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.access import OwnJob
from api.answers import ChunkPage
from api.paging import cut, decode_cursor
from api.state import State
from api.views import chunk_view
from revln.db.jobs.lists import list_chunks as read_chunks
from revln.jobs.state import ChunkState

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
    return {"chunks": [chunk_view(chunk) for chunk in page], "next_cursor": more}
