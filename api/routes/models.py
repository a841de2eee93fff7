"""/v1/models: what there is, where it is loaded, and the order to load it or let go of it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.responses import JSONResponse

from api.access import Operator
from api.answers import ModelAnswer, ModelOrderAnswer, ModelsAnswer
from api.state import ApiState, State
from revln.access import Caller
from revln.db.model_orders import Wanted, place_order
from revln.db.workers import list_workers
from revln.errors import ModelUnavailable, Unavailable

__all__ = ["router"]

router = APIRouter(prefix="/v1/models", tags=["models"])

# A name of REVLN_MODELS may be of any characters but a slash; no path and no hub id is one.
Name = Annotated[str, Path(max_length=128)]
_SHOWN = ("state", "order", "device", "dtype", "batch", "size_bytes", "chunks", "error")
_ORDERED: dict[int | str, dict[str, Any]] = {
    202: {"model": ModelOrderAnswer, "description": "Every worker does it within seconds of reading it"}
}


@router.get("", summary="List models", responses={200: {"model": ModelsAnswer}})
def list_all(state: State) -> dict[str, Any]:
    workers = _workers(state)
    state.catalog.look()
    return {"models": [_view(state, name, workers) for name in state.catalog.names]}


@router.get("/{name}", summary="Show one model", responses={200: {"model": ModelAnswer}})
def show(name: Name, state: State) -> dict[str, Any]:
    state.catalog.spec(name)
    return _view(state, name, _workers(state))


@router.post("/{name}/load", summary="Load a model in every worker", status_code=202, responses=_ORDERED)
def load(name: Name, state: State, caller: Operator) -> JSONResponse:
    """Its first job would do it too; this is for a model that shall be warm before that.

    `workers[].order` of the model reaches the `order` of this answer when that worker has done it, or has failed:
    then `workers[].error` says why.
    """
    return _ordered(state, caller, name, "load")


@router.post("/{name}/unload", summary="Unload a model in every worker", status_code=202, responses=_ORDERED)
def unload(name: Name, state: State, caller: Operator) -> JSONResponse:
    """Each worker lets go of it as soon as no running chunk holds it. The next job that names it loads it again."""
    return _ordered(state, caller, name, "unload")


def _ordered(state: ApiState, caller: Caller, name: str, wanted: Wanted) -> JSONResponse:
    state.catalog.spec(name)
    workers = [worker["id"] for worker in _workers(state)]
    if not workers:
        raise Unavailable("No worker is alive to do it. Start one: revln worker.")
    order = place_order(state.db, name, wanted, caller)
    return JSONResponse({"name": name, "wanted": wanted, "order": order.number, "workers": workers}, 202)


def _workers(state: ApiState) -> list[dict[str, Any]]:
    with state.db.read() as connection:
        return list_workers(connection)


def _view(state: ApiState, name: str, workers: list[dict[str, Any]]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "default": name == state.catalog.default}
    try:
        info = state.catalog.describe(name)
    except (ModelUnavailable, Unavailable) as err:
        return {**entry, "error": err.as_dict(), "workers": _in_workers(name, None, workers)}
    here = _in_workers(name, info.fingerprint, workers)
    return {
        **entry,
        "family": info.family,
        "operations": [operation.value for operation in info.operations],
        "dim": info.dim,
        "fingerprint": info.fingerprint,
        "joint_fingerprint": info.joint_fingerprint,
        "max_tokens": info.max_tokens,
        "prompts": {"query": info.prompts.query, "document": info.prompts.document} if info.prompts else None,
        "parameters": info.parameters,
        "license": info.license,
        "has_confidence": info.has_confidence,
        "loaded": any(model.get("device") for model in here),
        "workers": here,
    }


def _in_workers(name: str, fingerprint: str | None, workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Its state in each worker. One with another fingerprint has other files under this name, and refuses our jobs."""
    return [
        {"worker": worker["id"], **{key: model[key] for key in _SHOWN if key in model}}
        for worker in workers
        for model in worker["models"]
        if model["name"] == name and (fingerprint is None or model.get("fingerprint") in (None, fingerprint))
    ]
