"""/v1/collections: make, read, list, delete; page through items."""

from __future__ import annotations

import json
from typing import Annotated, Any, Self

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import JSONResponse

from api.access import Name, OwnCollection, Who
from api.answers import CollectionAnswer, CollectionPage, CollectionsAnswer
from api.paging import decode_cursor, encode_cursor
from api.problems import invalid
from api.state import ApiState, State
from api.views import collection_view, item_view
from revln.access import Scope
from revln.db.collections import collections as db_collections
from revln.db.collections.collections import Collection
from revln.errors import NotFound
from revln.jobs.filters import Filter, FilterError, parse_filter
from revln.jobs.index_schemas import MAX_DIM
from revln.jobs.schemas import Metadata

__all__ = ["router"]

router = APIRouter(prefix="/v1/collections", tags=["collections"])

_FILTER_S = 5.0  # somebody waits for the page; a good one takes a few milliseconds
_PAGE_BYTES = 32 * 2**20  # 10,000 items of 16,384 numbers each would be 873 MB

_ONE: dict[int | str, dict[str, Any]] = {200: {"model": CollectionAnswer}}


class CollectionBody(BaseModel):
    """A collection's vectors are all of one model; or they are yours, all of one length."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False, protected_namespaces=())

    model: Annotated[str, Field(max_length=128)] | None = None
    dim: Annotated[int, Field(ge=1, le=MAX_DIM)] | None = Field(
        None, description="For vectors of your own: how many numbers each has. Such a collection has no model."
    )
    metadata: Metadata = Field(default_factory=dict)

    @model_validator(mode="after")
    def _model_or_dim(self) -> Self:
        if self.model is not None and self.dim is not None:
            raise ValueError("give model or dim: a model's vectors have the model's length")
        return self


@router.put(
    "/{name}",
    summary="Make a collection; again is fine",
    responses={
        **_ONE,
        201: {"model": CollectionAnswer, "description": "Made"},
        204: {"description": "It is there, and the key may not read it"},
    },
)
def put(name: Name, state: State, caller: Who, body: CollectionBody | None = None) -> Response:
    body = body or CollectionBody()
    model, fingerprint, dim = _vectors_of(state, caller.tenant, name, body)
    made = db_collections.create_collection(state.db, caller, name, model, fingerprint, dim, body.metadata)
    collection, new = made
    if not new and not caller.may(Scope.READ):
        return Response(status_code=204)
    return JSONResponse(collection_view(collection), 201 if new else 200)


def _vectors_of(state: ApiState, tenant: str, name: str, body: CollectionBody) -> tuple[str, str, int]:
    """The model ("" for the user's own vectors), its fingerprint, and the dimension."""
    if body.dim is not None:
        return "", f"vectors-{body.dim}", body.dim
    if body.model is None:
        # One that is there is what it is, whatever the default model.
        try:
            with state.db.read() as connection:
                known = db_collections.get_collection(connection, tenant, name)
            return known.model, known.model_fingerprint, known.dim
        except NotFound:
            pass
    try:
        info = state.catalog.describe(body.model or state.catalog.default)
    except NotFound as err:
        raise invalid("/model", err.message) from err
    if info.dim is None:
        raise invalid("/model", f"model {info.name} makes no vectors")
    return info.name, info.joint_fingerprint, info.dim


@router.get("", summary="List collections", responses={200: {"model": CollectionsAnswer}})
def list_all(state: State, caller: Who) -> dict[str, Any]:
    with state.db.read() as connection:
        found = db_collections.list_collections(connection, caller.tenant)
    return {"collections": [collection_view(one) for one in found]}


@router.get("/{name}", summary="Read a collection", responses=_ONE)
def get(collection: OwnCollection) -> dict[str, Any]:
    return collection_view(collection)


@router.delete("/{name}", status_code=204, summary="Delete a collection and its log")
def delete(collection: OwnCollection, state: State, caller: Who) -> Response:
    db_collections.delete_collection(state.db, caller, collection.name)
    return Response(status_code=204)


@router.get(
    "/{name}/items",
    summary="Page through a collection's items, in the order of their ids",
    responses={200: {"model": CollectionPage}},
)
async def items(
    collection: OwnCollection,
    state: State,
    caller: Who,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    cursor: str | None = None,
    filter: Annotated[str | None, Query(description="A filter as JSON, see docs/search.md.")] = None,
    vectors: Annotated[bool, Query(description="With each item's vector: float32, little-endian, in base64.")] = False,
) -> Response:
    position = decode_cursor(cursor, str)
    after, wanted = position[0] if position else None, _filter(filter)
    if wanted is None:
        body = await run_sync(_page, state, collection, limit, after, None, vectors)
    else:  # the database may have much to test for each: others' requests must not wait for it
        body = await state.filters.run(caller.tenant, lambda: _page(state, collection, limit, after, wanted, vectors))
    return Response(body, media_type="application/json")


def _page(
    state: ApiState, collection: Collection, limit: int, after: str | None, wanted: Filter | None, vectors: bool
) -> bytes:
    page: list[bytes] = []
    size, last, more = 0, "", None
    with state.db.read(limit_s=None if wanted is None else _FILTER_S) as connection:
        for row in db_collections.list_items(
            connection, collection.id, limit + 1, after, wanted=wanted, with_vectors=vectors
        ):
            if len(page) == limit or size > _PAGE_BYTES:
                more = encode_cursor([last])
                break
            page.append(json.dumps(item_view(row), ensure_ascii=False, separators=(",", ":")).encode())
            size, last = size + len(page[-1]), row["item_id"]
    return b'{"items":[%s],"next_cursor":%s}' % (b",".join(page), json.dumps(more).encode())


def _filter(given: str | None) -> Filter | None:
    if given is None:
        return None
    try:
        return parse_filter(json.loads(given))
    except FilterError as err:
        raise invalid(f"/filter{err.pointer}", err.detail) from err
    except (ValueError, RecursionError) as err:
        raise invalid("/filter", 'not JSON, as in {"year": {"gte": 2020}}') from err
