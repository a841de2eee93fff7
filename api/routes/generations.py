"""/v1/collections/{name}/generations: which models' vectors a collection has, and giving up those that do not serve."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Response

from api.access import OwnCollection, Who
from api.answers import GenerationsAnswer
from api.state import State
from api.views import generation_view
from revln.db.collections.generations import Role, delete_generation, shadows_of

__all__ = ["router"]

router = APIRouter(prefix="/v1/collections", tags=["collections"])


@router.get(
    "/{name}/generations",
    summary="List a collection's generations: the one that serves, and those before and after it",
    responses={200: {"model": GenerationsAnswer}},
)
def list_all(serving: OwnCollection, state: State) -> dict[str, Any]:
    with state.db.read() as connection:
        found = [serving, *shadows_of(connection, serving.id)]
    return {"generations": [generation_view(one) for one in found]}


@router.delete(
    "/{name}/generations/{role}", status_code=204, summary="Delete a generation that does not serve, with its log"
)
def delete(serving: OwnCollection, role: Literal["next", "former", "returning"], state: State, caller: Who) -> Response:
    with state.db.write() as connection:
        delete_generation(connection, caller, serving.name, Role(role))
    return Response(status_code=204)
