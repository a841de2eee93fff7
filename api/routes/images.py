"""/v1/images: content-addressed upload, and thumbnails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from typing import IO, Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, StreamingResponse

from api.access import Sha256, Who
from api.answers import ImageAnswer
from api.problems import invalid
from api.state import ApiState, State
from api.views import matches
from revln.access import OWNER
from revln.errors import ItemNotFound, NotFound
from revln.images import THUMBNAIL_MEDIA_TYPE, THUMBNAIL_WIDTHS, inspect_image, media_type_of, thumbnail

__all__ = ["router"]

_PIECE_BYTES = 64 * 2**10

router = APIRouter(prefix="/v1/images", tags=["images"])

_FOREVER = "private, max-age=31536000, immutable"  # the address is the content
_FORM = "multipart/form-data"


@router.post(
    "",
    status_code=201,
    summary="Upload a picture, raw or as a multipart form's file",
    responses={200: {"model": ImageAnswer, "description": "Known already"}, 201: {"model": ImageAnswer}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "image/*": {"schema": {"type": "string", "format": "binary"}},
                _FORM: {"schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}},
            },
        }
    },
)
async def upload(request: Request, state: State, caller: Who) -> Response:
    if request.headers.get("content-type", "").startswith(_FORM):
        async with request.form(max_files=1, max_fields=8) as form:
            files = [value for value in form.values() if isinstance(value, UploadFile)]
            if len(files) != 1:
                raise invalid("", f"a form must carry exactly one file; this one carries {len(files)}")
            data = await files[0].read()
    else:
        data = await request.body()
    facts = await state.pictures.run(caller.tenant, lambda: inspect_image(data, state.image_limits))
    # Known means known to the tenant: that others have the same picture is theirs to know.
    new = await run_sync(state.uploads.put, caller.tenant, [data], caller.key_id)
    body = {
        "sha256": facts.sha256,
        "media_type": facts.media_type,
        "width": facts.width,
        "height": facts.height,
        "size_bytes": facts.size_bytes,
    }
    return JSONResponse(body, 201 if new else 200, {"Location": f"/v1/images/{facts.sha256}"})


@router.get(
    "/{sha256}",
    summary="The picture, or a thumbnail of it",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}}, 304: {"description": "Still as `If-None-Match` has it"}},
)
async def fetch(
    sha256: Sha256,
    state: State,
    caller: Who,
    width: Annotated[int | None, Query(ge=THUMBNAIL_WIDTHS[0], le=THUMBNAIL_WIDTHS[1])] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    headers = {"ETag": f'"{sha256}-{width or 0}"'}
    if caller.who == OWNER.who:  # no key, no secret: a browser may keep it
        headers["Cache-Control"] = _FOREVER
    if await run_sync(_is_known, state, caller.tenant, sha256, matches(headers["ETag"], if_none_match)):
        return Response(status_code=304, headers=headers)
    if width is None:
        file = await run_sync(_open, state, sha256)
        headers["Content-Length"] = str(file.seek(0, os.SEEK_END))
        file.seek(0)
        pieces = _pieces(file)
        first = next(pieces, b"")  # begun, it closes the file also where nobody reads on
        return StreamingResponse(chain([first], pieces), media_type=media_type_of(first), headers=headers)
    small = state.thumbnails.get((caller.tenant, sha256, width))
    if small is None:
        small = await state.pictures.run(caller.tenant, lambda: _thumbnail(state, caller.tenant, sha256, width))
    return Response(small, media_type=THUMBNAIL_MEDIA_TYPE, headers=headers)


def _is_known(state: ApiState, tenant: str, sha256: str, is_same: bool) -> bool:
    """Whether the client has the picture already. Raises NotFound if it is not the tenant's."""
    if not state.uploads.of(tenant, "image", [sha256]):
        raise _not_found(sha256)
    return is_same and state.blobs.exists(sha256, "images")


def _open(state: ApiState, sha256: str) -> IO[bytes]:
    """The whole picture, to be sent as it is read: held in memory, those that nobody takes would fill it."""
    try:
        return state.blobs.open_checked(sha256, "images")
    except ItemNotFound as err:
        raise _not_found(sha256) from err


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _bytes(state: ApiState, sha256: str) -> bytes:
    try:
        return state.blobs.get(sha256, "images")
    except ItemNotFound as err:
        raise _not_found(sha256) from err


def _thumbnail(state: ApiState, tenant: str, sha256: str, width: int) -> bytes:
    """Make one, unless that was done while this request waited for its turn."""
    small = state.thumbnails.get((tenant, sha256, width))
    if small is None:
        small = thumbnail(_bytes(state, sha256), state.image_limits, width)
        state.thumbnails.put((tenant, sha256, width), small)
    return small


def _not_found(sha256: str) -> NotFound:
    return NotFound(f"There is no image {sha256}. POST /v1/images uploads one.")


@router.delete("/{sha256}", status_code=204, summary="Delete a picture that no job and no item needs")
def delete(sha256: Sha256, state: State, caller: Who) -> Response:
    state.uploads.delete(caller, "image", sha256)
    return Response(status_code=204)
