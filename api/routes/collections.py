"""/v1/collections: make, read, list, delete; page through items."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from api.answers import CollectionAnswer, CollectionPage, CollectionsAnswer
from api.paging import decode_cursor, encode_cursor
from api.problems import invalid
from api.state import State
from api.views import collection_view
from revln.db import collections as db_collections
from revln.errors import NotFound
from revln.jobs.schemas import CollectionName, Metadata

__all__ = ["router"]

router = APIRouter(prefix="/v1/collections", tags=["collections"])

Name = Annotated[CollectionName, Path()]
_ONE: dict[int | str, dict[str, Any]] = {200: {"model": CollectionAnswer}}


class CollectionBody(BaseModel):
    """A collection's vectors are of one model for ever."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: Annotated[str, Field(max_length=128)] | None = None
    metadata: Metadata = Field(default_factory=dict)


@router.put(
    "/{name}",
    summary="Make a collection; again is fine",
    responses={**_ONE, 201: {"model": CollectionAnswer, "description": "Made"}},
)
def put(name: Name, state: State, body: CollectionBody | None = None) -> Response:
    body = body or CollectionBody()
    try:
        info = state.catalog.describe(body.model or state.catalog.default)
    except NotFound as err:
        raise invalid("/model", err.message) from err
    if info.dim is None:
        raise invalid("/model", f"model {info.name} makes no vectors")
    collection, new = db_collections.create_collection(
        state.db, name, info.name, info.fingerprint, info.dim, body.metadata
    )
    return JSONResponse(collection_view(collection), 201 if new else 200)


@router.get("", summary="List collections", responses={200: {"model": CollectionsAnswer}})
def list_all(state: State) -> dict[str, Any]:
    with state.db.read() as connection:
        return {"collections": [collection_view(one) for one in db_collections.list_collections(connection)]}


@router.get("/{name}", summary="Read a collection", responses=_ONE)
def get(name: Name, state: State) -> dict[str, Any]:
    with state.db.read() as connection:
        return collection_view(db_collections.get_collection(connection, name))


@router.delete("/{name}", status_code=204, summary="Delete a collection and its log")
def delete(name: Name, state: State) -> Response:
    db_collections.delete_collection(state.db, name)
    return Response(status_code=204)


@router.get(
    "/{name}/items",
    summary="Page through a collection's items, in the order of their ids",
    responses={200: {"model": CollectionPage}},
)
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
