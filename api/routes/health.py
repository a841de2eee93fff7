"""/healthz, /readyz and /metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from redis.exceptions import RedisError
from starlette.responses import JSONResponse

from api.access import Who
from api.answers import ReadyAnswer
from api.state import ApiState, State
from revln import __version__
from revln.access import DEFAULT_TENANT
from revln.db.jobs.lists import count_by_status, drain_rate
from revln.db.webhooks.log import count_by_state
from revln.db.workers import list_workers
from revln.errors import Forbidden, RevlnError
from revln.redis_clients import connect_redis_async

__all__ = ["router"]

router = APIRouter(tags=["health"])

_READY: dict[int | str, dict[str, Any]] = {
    200: {"model": ReadyAnswer},
    503: {"model": ReadyAnswer, "description": "Not ready: the part that is not says why"},
}


@router.get("/healthz", summary="The API process answers")
async def healthz() -> dict[str, str]:  # a plain function would wait for a thread
    return {"status": "ok", "version": __version__}


@router.get("/readyz", summary="Database, Redis and a worker answer", responses=_READY)
async def readyz(state: State) -> JSONResponse:
    """The worker's part is a canary: a message through Celery that a worker thread answers, its model loaded. Where all
    threads are busy none does; then it counts that a worker beats and has heard its own messages up to now."""
    (database, workers), broker, worker = await asyncio.gather(
        run_sync(_database, state), run_sync(_broker, state), _worker(state)
    )
    if worker is None:
        busy = any(one["state"] == "busy" for one in workers)
        worker = "ok" if busy else f"no worker answered within {state.canary_s:g} s"
    parts = {"database": database, "redis": broker, "worker": worker}
    ready = all(answer == "ok" for answer in parts.values())
    return JSONResponse({"ready": ready, **parts, "workers": workers}, 200 if ready else 503)


def _database(state: ApiState) -> tuple[str, list[dict[str, str]]]:
    try:
        with state.db.read() as connection:
            rows = list_workers(connection)
    except RevlnError as err:
        return err.message, []
    return "ok", [{"id": row["id"], "state": _state(row)} for row in rows]


def _state(row: dict[str, Any]) -> str:
    return str(row["trouble"]) or ("busy" if row["busy"] else "hears")


def _broker(state: ApiState) -> str:
    try:
        state.dispatcher.claim()
    except RedisError as err:
        return f"Redis does not answer: {type(err).__name__}"
    except RevlnError as err:  # another installation's, or the database does not answer either
        return err.message
    return "ok"


async def _worker(state: ApiState) -> str | None:
    """What a worker answered, or why it could not be asked; None: nobody answered."""
    client = connect_redis_async(state.settings, socket_connect_timeout=2, socket_timeout=state.canary_s + 1)
    try:
        key = await run_sync(state.dispatcher.send_canary)
        answer: Any = await client.blpop([key], timeout=state.canary_s)
    except Exception as err:  # noqa: BLE001 - whatever stops the message is the answer
        return f"the canary could not be sent: {type(err).__name__}"
    finally:
        await client.aclose()
    # The answer is [key, "ok"], or what stopped the worker.
    return str(answer[1]) if answer else None


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
def metrics(state: State, caller: Who) -> Response:
    """Read from SQL at every scrape, so that every API process tells the same. Of all tenants: a default one's key."""
    if caller.tenant != DEFAULT_TENANT:
        raise Forbidden(f"These are figures of all tenants, for a key of the tenant {DEFAULT_TENANT}.")
    registry = CollectorRegistry()
    jobs = Gauge("revln_jobs", "Jobs kept, by kind and status.", ["kind", "status"], registry=registry)
    items = Gauge("revln_open_items", "Items accepted and not yet done.", ["kind"], registry=registry)
    workers = Gauge("revln_workers", "Workers heard of within 30 s.", registry=registry)
    rate = Gauge("revln_items_per_second", "Items finished per second over the last minute.", registry=registry)
    webhooks = Gauge("revln_webhooks", "Deliveries in the log, by state.", ["state"], registry=registry)
    with state.db.read() as connection:
        for kind, status, count, waiting in count_by_status(connection):
            jobs.labels(kind, status).set(count)
            items.labels(kind).inc(waiting)
        workers.set(len(list_workers(connection)))
        rate.set(drain_rate(connection))
        for name, count in count_by_state(connection).items():
            webhooks.labels(name).set(count)
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
