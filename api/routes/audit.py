"""/v1/audit: who did what. An admin's own tenant's; the operator sees every tenant's."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.access import Admin
from api.answers import AuditPage
from api.paging import cut, decode_cursor
from api.state import State
from api.views import audit_view
from revln.db.access.audit import list_audit

__all__ = ["router"]

router = APIRouter(prefix="/v1/audit", tags=["keys"])


@router.get("", summary="Who did what, newest first", responses={200: {"model": AuditPage}})
def list_all(
    state: State,
    caller: Admin,
    action: Annotated[str | None, Query(pattern=r"^[a-z]+\.[a-z]+$", description="As in job.cancel.")] = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    cursor: str | None = None,
) -> dict[str, Any]:
    position = decode_cursor(cursor, int)
    tenant = None if caller.is_operator else caller.tenant
    with state.db.read() as connection:
        found = list_audit(connection, tenant, limit + 1, position[0] if position else None, action)
    page, more = cut(found, limit, lambda one: [one.id])
    return {"entries": [audit_view(one) for one in page], "next_cursor": more}
