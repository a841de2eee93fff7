"""/v1/models: what there is, and where it is loaded."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from api.answers import ModelsAnswer
from api.state import State
from revln.db.workers import list_workers
from revln.errors import ModelUnavailable

__all__ = ["router"]

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="List models", responses={200: {"model": ModelsAnswer}})
def list_all(state: State) -> dict[str, Any]:
    with state.db.read() as connection:
        workers = list_workers(connection)
    models = []
    for name in state.catalog.names:
        entry: dict[str, Any] = {"name": name, "default": name == state.catalog.default}
        try:
            info = state.catalog.describe(name)
        except ModelUnavailable as err:
            models.append({**entry, "error": err.as_dict()})
            continue
        loaded = [
            {"worker": worker["id"], **{key: model[key] for key in ("device", "dtype", "batch") if key in model}}
            for worker in workers
            for model in worker["models"]
            if model["name"] == name and model["fingerprint"] == info.fingerprint
        ]
        models.append(
            {
                **entry,
                "family": info.family,
                "operations": [operation.value for operation in info.operations],
                "dim": info.dim,
                "fingerprint": info.fingerprint,
                "joint_fingerprint": info.joint_fingerprint,
                "parameters": info.parameters,
                "license": info.license,
                "loaded": bool(loaded),
                "workers": loaded,
            }
        )
    return {"models": models}
