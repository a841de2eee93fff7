"""/v1/collections/{name}/snapshots: the built indexes of a collection, and going back to an older one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict, Field

from api.access import OwnCollection, Who
from api.answers import SnapshotAnswer, SnapshotsAnswer
from api.state import State
from api.views import snapshot_view
from revln.db.collections import snapshots as db_snapshots

__all__ = ["router"]

router = APIRouter(prefix="/v1/collections", tags=["collections"])


class RollbackBody(BaseModel):
    """Which snapshot to serve; without one, that before the current one."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    snapshot: Annotated[str, Field(max_length=64)] | None = None


@router.get(
    "/{name}/snapshots",
    summary="List the built indexes that are kept, newest first",
    responses={200: {"model": SnapshotsAnswer}},
)
def list_all(collection: OwnCollection, state: State) -> dict[str, Any]:
    with state.db.read() as connection:
        found = db_snapshots.list_snapshots(connection, collection.id)
    return {"snapshots": [snapshot_view(one, collection.snapshot_id) for one in found]}


@router.delete("/{name}/snapshots/{snapshot_id}", status_code=204, summary="Delete a built index that is not searched")
def delete(
    collection: OwnCollection,
    snapshot_id: Annotated[str, Path(pattern=r"^[0-9a-f-]{1,64}$")],
    state: State,
    caller: Who,
) -> Response:
    db_snapshots.delete_snapshot(state.db, collection.id, snapshot_id, caller)
    return Response(status_code=204)


@router.post(
    "/{name}/rollback",
    summary="Search an older snapshot's index again; the items stay as they are",
    responses={200: {"model": SnapshotAnswer}},
)
def rollback(collection: OwnCollection, state: State, caller: Who, body: RollbackBody | None = None) -> dict[str, Any]:
    served = db_snapshots.roll_back(state.db, collection.id, body.snapshot if body else None, caller)
    return snapshot_view(served, served.id)
