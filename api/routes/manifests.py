"""/v1/manifests: upload a JSON-lines file of items, for jobs too long for one body."""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from api.access import Sha256, Who
from api.answers import ManifestAnswer
from api.manifests import ManifestLines
from api.state import State

__all__ = ["router"]

router = APIRouter(prefix="/v1/manifests", tags=["manifests"])


@router.post(
    "",
    status_code=201,
    summary="Upload a manifest: one item a line",
    responses={201: {"model": ManifestAnswer}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/jsonl": {"schema": {"type": "string", "format": "binary", "minLength": 1}}},
        }
    },
)
async def upload(request: Request, state: State, caller: Who) -> JSONResponse:
    """Streamed to the blob store, never held in memory. Its lines are counted, and checked when a job reads them.

    `lines` are those that are not blank. A manifest with a line of over a MiB, or without any JSON, is refused.
    """
    lines = ManifestLines()

    def take(piece: bytes) -> None:
        lines.feed(piece)
        writer.write(piece)

    with await run_sync(state.blobs.writer, "manifests", state.settings.max_manifest_bytes) as writer:
        async for piece in request.stream():
            if piece:
                await run_sync(take, piece)
        count = lines.end()
        sha256, size = await run_sync(state.uploads.commit, caller.tenant, "manifest", writer, caller.key_id)
    return JSONResponse({"sha256": sha256, "lines": count, "size_bytes": size}, 201)


@router.delete("/{sha256}", status_code=204, summary="Delete a manifest that no job needs")
def delete(sha256: Sha256, state: State, caller: Who) -> Response:
    state.uploads.delete(caller, "manifest", sha256)
    return Response(status_code=204)
