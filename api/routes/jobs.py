"""/v1/jobs: submit, read, wait, list, result, events, cancel, retry, delete."""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncIterable
from typing import Annotated, Any

import numpy as np
from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.responses import JSONResponse

from api.access import OwnJob, Who
from api.answers import RESULTS, JobAnswer, JobDoneAnswer, JobPage
from api.paging import cut, decode_cursor
from api.problems import invalid
from api.quotas import quotas_of
from api.requests import JobRequest, Moment, SubmitBody
from api.state import ApiState, State
from api.submission import submit
from api.views import etag, job_view, matches, result_view
from revln.access import Caller, Scope
from revln.db.jobs import changes as job_changes
from revln.db.jobs import read as db_jobs
from revln.db.jobs.lists import JobFilter, queue_position
from revln.db.jobs.lists import list_jobs as read_jobs
from revln.db.jobs.read import Job
from revln.db.jobs.results import result_items
from revln.errors import ModelUnavailable, Unauthorized, Unavailable, UnsupportedMedia
from revln.jobs.kinds import KINDS, queue_name
from revln.jobs.state import JobStatus
from revln.timestamps import timestamp

__all__ = ["router"]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_NPY = "application/x-npy"
_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})", re.IGNORECASE)
_INLINE_RESULT_ITEMS = 1_000  # `Prefer: wait` answers with at most one page of the result, cut where it is too large

Wait = Annotated[float, Query(ge=0, le=600, description="Hold the answer up to this many seconds for a change.")]
Limit = Annotated[int, Query(ge=1, le=10_000)]


_JOB: dict[int | str, dict[str, Any]] = {200: {"model": JobAnswer}}


def _read(state: ApiState, job_id: str) -> tuple[Job, int | None]:
    with state.db.read() as connection:
        job = db_jobs.get_job(connection, job_id)
        return job, queue_position(connection, job)


def _position(state: ApiState, job: Job) -> int | None:
    with state.db.read() as connection:
        return queue_position(connection, job)


def _page(state: ApiState, job: Job, offset: int, limit: int, cut: bool = False) -> dict[str, Any]:
    with state.db.read() as connection:
        page = result_items(connection, job.id, offset, limit, cut=cut)
    return result_view(job, page, _dim(state, job, page))


def _dim(state: ApiState, job: Job, page: list[tuple[dict[str, Any], Any]]) -> int | None:
    """Of the vectors here; without any, of the model, if that can be read now."""
    found = next((len(vector) for _, vector in page if vector is not None), None)
    if found is not None or job.model not in state.catalog.names:
        return found
    try:
        return state.catalog.describe(job.model).dim
    except (ModelUnavailable, Unavailable):
        return None


def _answer(state: ApiState, job: Job, position: int | None, status: int = 200, **more: Any) -> JSONResponse:
    body = {**job_view(job, state.settings, position), **more}
    return JSONResponse(body, status, {"ETag": etag(job)})


@router.post(
    "",
    status_code=202,
    summary="Submit a job",
    responses={
        200: {"model": JobDoneAnswer, "description": "Done within Prefer: wait"},
        202: {"model": JobAnswer, "description": "Accepted: committed, to be done"},
    },
)
async def submit_job(
    body: JobRequest,
    state: State,
    caller: Who,
    prefer: Annotated[str | None, Header(description="`wait=N` holds the answer up to N seconds (RFC 7240).")] = None,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="Makes it safe to send the same body again.")
    ] = None,
) -> Response:
    """Accept a job: it is committed when this answers. The same Idempotency-Key and body give the same job."""
    assert isinstance(body, SubmitBody)
    job, _ = await run_sync(submit, state, caller, body, idempotency_key)
    # A key that may not read results is not given one; a preference may be left alone.
    wait_s = _wait_preferred(prefer) if caller.may(Scope.READ) else None
    position = None
    headers = {"Location": job_view(job, state.settings)["urls"]["self"]}
    more: dict[str, Any] = {}
    if wait_s is not None:
        wait_s = min(wait_s, state.settings.max_wait_s)
        headers["Preference-Applied"] = f"wait={wait_s:g}"
        job, position = await _until(state, caller, job.id, lambda now: now.status.done, wait_s)
        if job.status.done:
            more["result"] = await run_sync(_page, state, job, 0, _INLINE_RESULT_ITEMS, True)
    else:
        _, position = await run_sync(_read, state, job.id)
    status = 200 if "result" in more else 202
    response = await run_sync(lambda: _answer(state, job, position, status, **more))
    response.headers.update(headers)
    return response


def _wait_preferred(prefer: str | None) -> float | None:
    """RFC 7240: a preference that is not understood is ignored."""
    found = _PREFER_WAIT.search(prefer or "")
    return float(found.group(1)) if found else None


async def _until(state: ApiState, caller: Caller, job_id: str, enough: Any, wait_s: float) -> tuple[Job, int | None]:
    """The job once ``enough(job)`` holds or the wait is over; no thread is held in between."""
    latest: list[tuple[Job, int | None]] = []

    async def look() -> bool | None:
        await state.keys.check(caller)
        latest[:] = [await run_sync(_read, state, job_id)]
        return True if enough(latest[0][0]) else None

    await state.waiter.until(job_id, look, min(wait_s, state.settings.max_wait_s))
    return latest[0]


@router.get("", summary="List jobs, newest first", responses={200: {"model": JobPage}})
def list_jobs(
    state: State,
    caller: Who,
    status: JobStatus | None = None,
    kind: Annotated[str | None, Query(json_schema_extra={"enum": list(KINDS)})] = None,
    collection: str | None = None,
    tag: str | None = None,
    dead: Annotated[bool, Query(description="Only jobs with chunks that were given up: dead letters.")] = False,
    created_after: Annotated[Moment | None, Query(description="RFC 3339; UTC if it names no zone.")] = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    if kind is not None and kind not in KINDS:
        raise invalid("/kind", f"there is no kind {kind[:80]!r}; there are {', '.join(KINDS)}")
    wanted = JobFilter(
        status=status,
        kind=kind,
        collection=_plain(collection),
        tag=_plain(tag),
        dead=dead,
        created_after=created_after.timestamp() if created_after else None,
    )
    position = decode_cursor(cursor, float, str)
    with state.db.read() as connection:
        before = (position[0], position[1]) if position else None
        found = read_jobs(connection, caller.tenant, wanted, limit + 1, before)
    page, more = cut(found, limit, lambda job: [job.created_at, job.id])
    return {"jobs": [job_view(job, state.settings) for job in page], "next_cursor": more}


def _plain(value: str | None) -> str | None:
    # PostgreSQL refuses NUL in a text, and no stored text has one: nothing matches either way.
    return value.replace("\x00", "\ufffd") if value is not None else None


@router.get(
    "/{job_id}",
    summary="Read a job, or wait for it to change",
    responses={**_JOB, 304: {"description": "Still as `If-None-Match` has it"}},
)
async def get_job(
    job: OwnJob,
    state: State,
    caller: Who,
    wait: Wait = 0,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """With `wait`, answers as soon as the job differs from `If-None-Match` (or from now), or is done."""
    position = await run_sync(_position, state, job)
    known = if_none_match or etag(job)
    if wait and not job.status.done and matches(etag(job), known):
        job, position = await _until(
            state, caller, job.id, lambda now: now.status.done or not matches(etag(now), known), wait
        )
    if matches(etag(job), if_none_match):
        return Response(status_code=304, headers={"ETag": etag(job)})
    return _answer(state, job, position)


@router.get(
    "/{job_id}/result",
    summary="Read the items that are done, also while the job runs",
    responses={200: {"model": RESULTS, "content": {_NPY: {}}}},
)
def get_result(
    job: OwnJob,
    request: Request,
    state: State,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Limit = 1_000,
) -> Response:
    """As JSON, or with `Accept: application/x-npy` as a float32 array: row i is item offset + i, NaN if not done."""
    headers = {"ETag": etag(job)}
    if _NPY in request.headers.get("accept", ""):
        return Response(_as_npy(state, job, offset, limit), media_type=_NPY, headers=headers)
    # Not JSONResponse: a page of vectors is long, and this route already runs in a thread of its own.
    body = json.dumps(_page(state, job, offset, limit), allow_nan=False)
    return Response(body, media_type="application/json", headers=headers)


def _as_npy(state: ApiState, job: Job, offset: int, limit: int) -> bytes:
    if not KINDS[job.kind].operation(job.input).makes_vectors or job.model is None:
        raise UnsupportedMedia(f"A {job.kind} job has no vectors; ask for application/json.")
    with state.db.read() as connection:
        page = result_items(connection, job.id, offset, limit, as_json=False)
    dim = _dim(state, job, page)
    rows = np.full((max(0, min(limit, job.total - offset)), dim or 0), np.nan, dtype=np.float32)
    for item, vector in page:
        if vector is not None:
            rows[item["index"] - offset] = vector
    out = io.BytesIO()
    np.save(out, rows, allow_pickle=False)
    return out.getvalue()


@router.get("/{job_id}/events", summary="Follow a job (server-sent events)", response_class=EventSourceResponse)
async def follow(
    job: OwnJob,
    state: State,
    caller: Who,
    last_event_id: Annotated[int, Header(ge=0, le=2**53)] = 0,
) -> AsyncIterable[ServerSentEvent]:
    """From the event log in SQL, so it survives a restart of the API; ends when the job has ended."""
    seen, job_id = last_event_id, job.id

    def fetch() -> tuple[list[dict[str, Any]], bool]:
        with state.db.read() as connection:
            # The status first: read the other way round, a job that ended in between would lose its last event.
            done = db_jobs.get_job(connection, job_id).status.done
            return db_jobs.events_after(connection, job_id, seen), done

    async def look() -> tuple[list[dict[str, Any]], bool] | None:
        await state.keys.check(caller)
        events, done = await run_sync(fetch)
        return (events, done) if events or done else None

    while not state.waiter.closing.is_set():
        try:
            news = await state.waiter.until(job_id, look, state.settings.max_wait_s)
        except Unauthorized:  # the key was revoked: too late for a status, so the stream ends
            return
        if news is None:
            continue
        events, done = news
        for event in events:
            seen = event["id"]
            data = {**event["data"], "job_id": job_id, "at": timestamp(event["created_at"])}
            yield ServerSentEvent(data=data, event=event["type"], id=str(seen))
        if done and not events:
            return


@router.post("/{job_id}/cancel", summary="Cancel: queued chunks now, running ones at their next batch", responses=_JOB)
def cancel_job(own: OwnJob, state: State, caller: Who) -> Response:
    job = job_changes.cancel_job(state.db, own.id, caller)
    state.publisher.announce(job.id)
    return _answer(state, job, None)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    summary="Run again what failed, was canceled or expired",
    responses={202: {"model": JobAnswer}},
)
def retry_job(own: OwnJob, state: State, caller: Who) -> Response:
    quotas = quotas_of(state.settings, caller)
    job = job_changes.retry_job(state.db, own.id, KINDS[own.kind].max_attempts, caller, quotas)
    state.publisher.publish(queue_name(job.kind, job.priority))
    state.publisher.announce(job.id)
    return _answer(state, job, None, 202)


@router.delete("/{job_id}", status_code=204, summary="Delete a finished job and its result")
def delete_job(own: OwnJob, state: State, caller: Who) -> Response:
    job_changes.delete_job(state.db, own.id, caller)
    return Response(status_code=204)
