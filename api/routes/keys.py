"""/v1/keys: make, list, rotate and revoke API keys: an admin's own tenant's, or the operator's: every tenant's."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from api.access import Admin
from api.answers import KeyAnswer, KeysAnswer, NewKeyAnswer
from api.state import State
from api.views import key_view
from revln.access import TENANT_PATTERN, Caller, Scope
from revln.db.access import keys as db_keys
from revln.errors import Forbidden

__all__ = ["router"]

router = APIRouter(prefix="/v1/keys", tags=["keys"])

MAX_LIFE_S = 3_650 * 86_400.0
MAX_OVERLAP_S = 90 * 86_400.0
OVERLAP_S = 86_400.0

KeyId = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]


class KeyBody(BaseModel):
    """A key of one tenant; its secret is in the answer, and nowhere afterwards."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False, frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")] = Field(
        description="Yours, to know it by in a listing."
    )
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(Scope))] = Field(
        description="submit changes what is the tenant's, read reads it, admin does both and makes keys."
    )
    tenant: Annotated[str, Field(pattern=TENANT_PATTERN)] | None = Field(
        None, description="Yours if left out; another one is for the operator, and is made with its first key."
    )
    expires_s: Annotated[float, Field(gt=0, le=MAX_LIFE_S)] | None = Field(
        None, description="Seconds from now after which it is refused."
    )
    max_queued_items: Annotated[int, Field(ge=1, le=2**53)] | None = None
    max_queued_bytes: Annotated[int, Field(ge=1, le=2**53)] | None = None
    requests_per_s: Annotated[float, Field(gt=0, le=1e6)] | None = None


class RotateBody(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False, frozen=True)

    overlap_s: Annotated[float, Field(ge=0, le=MAX_OVERLAP_S)] = Field(
        OVERLAP_S, description="Seconds for which the old key is taken beside the new one."
    )


def _whose(caller: Caller) -> str | None:
    return None if caller.is_operator else caller.tenant


@router.get("", summary="List keys, without their secrets", responses={200: {"model": KeysAnswer}})
def list_all(state: State, caller: Admin) -> dict[str, Any]:
    with state.db.read() as connection:
        return {"keys": [key_view(one) for one in db_keys.list_keys(connection, _whose(caller))]}


@router.post("", status_code=201, summary="Make a key", responses={201: {"model": NewKeyAnswer}})
def create(body: KeyBody, state: State, caller: Admin) -> dict[str, Any]:
    tenant = body.tenant or caller.tenant
    if tenant != caller.tenant and not caller.is_operator:
        raise Forbidden(f"An admin key of the tenant {caller.tenant} makes keys of that tenant, not of {tenant}.")
    quotas = db_keys.KeyQuotas(body.max_queued_items, body.max_queued_bytes, body.requests_per_s)
    made, key = db_keys.create_key(
        state.db,
        caller,
        tenant=tenant,
        name=body.name,
        scopes=set(body.scopes),
        expires_s=body.expires_s,
        quotas=quotas,
    )
    return {**key_view(made), "key": key}


@router.post(
    "/{key_id}/rotate",
    status_code=201,
    summary="Make a key's successor; the old one goes on for a while",
    responses={201: {"model": NewKeyAnswer}},
)
def rotate(key_id: KeyId, state: State, caller: Admin, body: RotateBody | None = None) -> dict[str, Any]:
    overlap_s = (body or RotateBody()).overlap_s
    made, key = db_keys.rotate_key(state.db, caller, key_id, _whose(caller), overlap_s)
    return {**key_view(made), "key": key}


@router.delete(
    "/{key_id}", summary="Revoke a key: refused everywhere within seconds", responses={200: {"model": KeyAnswer}}
)
def revoke(key_id: KeyId, state: State, caller: Admin) -> dict[str, Any]:
    return key_view(db_keys.revoke_key(state.db, caller, key_id, _whose(caller)))
