"""/v1/collections: make, read, list, delete; page through items."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.responses import JSONResponse

from api.paging import decode_cursor, encode_cursor
from api.requests import check_storable
from api.state import State
from api.views import collection_view
from revln.db import collections as db_collections
from revln.errors import FieldError, NotFound, ValidationFailed
from revln.jobs.schemas import MAX_METADATA_KEYS, CollectionName

__all__ = ["router"]

router = APIRouter(prefix="/v1/collections", tags=["collections"])

Name = Annotated[CollectionName, Path()]


class CollectionBody(BaseModel):
    """A collection's vectors are of one model for ever."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: Annotated[str, Field(max_length=128)] | None = None
    metadata: Annotated[dict[str, JsonValue], Field(max_length=MAX_METADATA_KEYS)] = Field(default_factory=dict)


@router.put("/{name}", summary="Make a collection; again is fine", responses={201: {"description": "Made"}})
def put(name: Name, state: State, body: CollectionBody | None = None) -> Response:
    body = body or CollectionBody()
    check_storable(body.metadata, "/metadata")
    try:
        info = state.catalog.describe(body.model or state.catalog.default)
    except NotFound as err:
        raise ValidationFailed(f"/model: {err.message}", (FieldError(err.message, "/model"),)) from err
    if info.dim is None:
        detail = f"model {info.name} makes no vectors"
        raise ValidationFailed(f"/model: {detail}", (FieldError(detail, "/model"),))
    collection, new = db_collections.create_collection(
        state.db, name, info.name, info.fingerprint, info.dim, body.metadata
    )
    return JSONResponse(collection_view(collection), 201 if new else 200)


@router.get("", summary="List collections")
def list_all(state: State) -> dict[str, Any]:
    with state.db.read() as connection:
        return {"collections": [collection_view(one) for one in db_collections.list_collections(connection)]}


@router.get("/{name}", summary="Read a collection")
def get(name: Name, state: State) -> dict[str, Any]:
    with state.db.read() as connection:
        return collection_view(db_collections.get_collection(connection, name))


@router.delete("/{name}", status_code=204, summary="Delete a collection and its log")
def delete(name: Name, state: State) -> Response:
    db_collections.delete_collection(state.db, name)
    return Response(status_code=204)


@router.get("/{name}/items", summary="Page through a collection's items, in the order of their ids")
def items(
    name: Name,
    state: State,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    cursor: str | None = None,
) -> dict[str, Any]:
    position = decode_cursor(cursor, str)
    with state.db.read() as connection:
        collection = db_collections.get_collection(connection, name)
        found = db_collections.list_items(connection, collection.id, limit + 1, position[0] if position else None)
    page = found[:limit]
    return {
        "items": [
            {
                "id": row["item_id"],
                "seq": row["seq"],
                "text": row["text"],
                "metadata": row["metadata"] or {},
                "image": {"sha256": row["image_sha256"]} if row["image_sha256"] else None,
            }
            for row in page
        ],
        "next_cursor": encode_cursor([page[-1]["item_id"]]) if len(found) > limit else None,
    }
