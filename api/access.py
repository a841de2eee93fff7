"""What routes ask for instead of an id: the caller, and the caller's own job or collection.

A route whose path names a job or a collection takes `OwnJob` or `OwnCollection`, and with that cannot reach another
tenant's: that one is 404, as if it were not there. `tests/integration/test_tenants.py` walks every route.
"""

from __future__ import annotations

import re
from typing import Annotated, cast

from anyio.to_thread import run_sync
from fastapi import Depends, Path, Request

from api.state import ApiState, State
from revln.access import Caller, Scope
from revln.db.collections.collections import Collection, get_collection
from revln.db.jobs.read import Job, get_job
from revln.errors import NotFound
from revln.jobs.schemas import CollectionName

__all__ = ["Admin", "Name", "Operator", "OwnCollection", "OwnJob", "Sha256", "Who"]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Name = Annotated[CollectionName, Path()]
Sha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


async def _caller(request: Request) -> Caller:
    return cast(Caller, request.state.caller)  # api.auth put it there


Who = Annotated[Caller, Depends(_caller)]


async def _admin(caller: Who) -> Caller:
    caller.demand(Scope.ADMIN)
    return caller


async def _operator(caller: Who) -> Caller:
    caller.demand_operator()
    return caller


Admin = Annotated[Caller, Depends(_admin)]
Operator = Annotated[Caller, Depends(_operator)]


async def _own_job(job_id: str, state: State, caller: Who) -> Job:
    """What is no id of ours is not there; nor does the database hear of it (PostgreSQL refuses NUL in a text)."""
    if not _UUID.fullmatch(job_id):
        raise NotFound(f"There is no job {job_id[:80]!r}.")
    return await run_sync(_read_job, state, caller.tenant, job_id)


def _read_job(state: ApiState, tenant: str, job_id: str) -> Job:
    with state.db.read() as connection:
        return get_job(connection, job_id, tenant)


async def _own_collection(name: Name, state: State, caller: Who) -> Collection:
    return await run_sync(_read_collection, state, caller.tenant, name)


def _read_collection(state: ApiState, tenant: str, name: str) -> Collection:
    with state.db.read() as connection:
        return get_collection(connection, tenant, name)


OwnJob = Annotated[Job, Depends(_own_job)]
OwnCollection = Annotated[Collection, Depends(_own_collection)]
