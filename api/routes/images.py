"""/v1/images: content-addressed upload, and thumbnails."""

from __future__ import annotations

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse

from api.access import Sha256, Who
from api.answers import ImageAnswer
from api.problems import invalid
from api.state import ApiState, State
from api.views import matches
from revln.access import OWNER
from revln.errors import ItemNotFound, NotFound
from revln.images import THUMBNAIL_MEDIA_TYPE, THUMBNAIL_WIDTHS, inspect_image, thumbnail

__all__ = ["router"]

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
    known, body = await run_sync(_store, state, caller.tenant, data)
    return JSONResponse(body, 200 if known else 201, {"Location": f"/v1/images/{body['sha256']}"})


def _store(state: ApiState, tenant: str, data: bytes) -> tuple[bool, dict[str, Any]]:
    facts = inspect_image(data, state.image_limits)
    # Known means known to the tenant: that others have the same picture is theirs to know.
    new = state.uploads.put(tenant, [data])
    return not new, {
        "sha256": facts.sha256,
        "media_type": facts.media_type,
        "width": facts.width,
        "height": facts.height,
        "size_bytes": facts.size_bytes,
    }


@router.get(
    "/{sha256}",
    summary="The picture, or a thumbnail of it",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}}, 304: {"description": "Still as `If-None-Match` has it"}},
)
def fetch(
    sha256: Sha256,
    state: State,
    caller: Who,
    width: Annotated[int | None, Query(ge=THUMBNAIL_WIDTHS[0], le=THUMBNAIL_WIDTHS[1])] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    headers = {"ETag": f'"{sha256}-{width or 0}"'}
    if caller.who == OWNER.who:  # no key, no secret: a browser may keep it
        headers["Cache-Control"] = _FOREVER
    try:
        if not state.uploads.of(caller.tenant, "image", [sha256]):
            raise ItemNotFound
        if matches(headers["ETag"], if_none_match) and state.blobs.exists(sha256, "images"):
            return Response(status_code=304, headers=headers)
        data = state.blobs.get(sha256, "images")
    except ItemNotFound as err:
        raise NotFound(f"There is no image {sha256}. POST /v1/images uploads one.") from err
    if width is not None:
        return Response(thumbnail(data, state.image_limits, width), media_type=THUMBNAIL_MEDIA_TYPE, headers=headers)
    facts = inspect_image(data, state.image_limits)
    return Response(data, media_type=facts.media_type, headers=headers)


@router.delete("/{sha256}", status_code=204, summary="Delete a picture that no job and no item needs")
def delete(sha256: Sha256, state: State, caller: Who) -> Response:
    state.uploads.delete(caller, "image", sha256)
    return Response(status_code=204)
