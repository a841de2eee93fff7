"""What was told of jobs, and what came of it: the delivery log, replays, tests, secrets."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from pydantic import Field

from api.access import Admin, OwnJob, Who
from api.answers import DeliveryDetail, DeliveryPage, EnabledAnswer, ReplayAnswer, SecretAnswer, SecretsAnswer
from api.paging import cut, decode_cursor
from api.problems import invalid
from api.requests import Moment
from api.state import ApiState, State
from api.views import delivery_view, shown
from revln.db.webhooks import log as webhook_log
from revln.db.webhooks.secrets import WebhookSecret, rotate_secret, webhook_secrets
from revln.errors import FetchRefused
from revln.fetch import postable
from revln.jobs.schemas import Strict
from revln.jobs.webhooks import DeliveryState, WebhookUrl

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["webhooks"])

_DAY_S = 86_400.0
Limit = Annotated[int, Query(ge=1, le=1_000)]


class UrlBody(Strict):
    url: WebhookUrl


class ReplayBody(Strict):
    """Without an id: everything of the job that was not delivered."""

    id: Annotated[str, Field(pattern=r"^msg_[0-9a-f]{32}$", description="One, delivered or not.")] | None = None


class RangeBody(Strict):
    """When it happened that was not told: RFC 3339, UTC if it names no zone."""

    since: Moment
    until: Moment | None = None


class RotateBody(Strict):
    secret: Annotated[str, Field(max_length=128)] | None = Field(
        None, description="whsec_ and 24 to 64 bytes as base64; a random one if you leave it out."
    )
    overlap_s: Annotated[float, Field(ge=0, le=30 * _DAY_S)] = Field(
        _DAY_S, description="For how long the former secret signs too."
    )


@router.get(
    "/jobs/{job_id}/webhooks",
    summary="List what was told of a job, newest first, with every attempt",
    responses={200: {"model": DeliveryPage}},
)
def list_of_job(job: OwnJob, state: State, limit: Limit = 100, cursor: str | None = None) -> dict[str, Any]:
    return _page(state, job.tenant, limit, cursor, job_id=job.id)


@router.post(
    "/jobs/{job_id}/webhooks/replay",
    status_code=202,
    summary="Tell again what of a job was not delivered, or one event whatever came of it",
    responses={202: {"model": ReplayAnswer}},
)
def replay_of_job(job: OwnJob, state: State, caller: Who, body: ReplayBody | None = None) -> dict[str, int]:
    """The webhook-id stays the same, and the schedule of tries begins anew."""
    if body is None or body.id is None:
        return {"replayed": webhook_log.replay(state.db, caller, job_id=job.id)}
    webhook_log.replay_one(state.db, caller, job.id, body.id)
    return {"replayed": 1}


@router.get("/webhooks", summary="List what was told, newest first", responses={200: {"model": DeliveryPage}})
def list_all(
    state: State,
    caller: Who,
    status: Annotated[DeliveryState | None, Query(alias="state")] = None,
    limit: Limit = 100,
    cursor: str | None = None,
) -> dict[str, Any]:
    return _page(state, caller.tenant, limit, cursor, state=status)


@router.post(
    "/webhooks/replay",
    status_code=202,
    summary="Tell again what was not delivered in a span of time",
    responses={202: {"model": ReplayAnswer}},
)
def replay_range(body: RangeBody, state: State, caller: Who) -> dict[str, int]:
    """For after an outage of yours. Progress is left out."""
    until = body.until.timestamp() if body.until else None
    return {"replayed": webhook_log.replay(state.db, caller, since=body.since.timestamp(), until=until)}


@router.post(
    "/webhooks/test",
    status_code=202,
    summary="Send a test to a URL: one try, signed as every event is",
    responses={202: {"model": DeliveryDetail}},
)
def test(body: UrlBody, state: State, caller: Who) -> dict[str, Any]:
    """Read `GET /v1/webhooks/{id}` to see what came of it."""
    return delivery_view(webhook_log.send_test(state.db, caller, body.url, _origin(state, body.url)), detail=True)


@router.post(
    "/webhooks/enable",
    summary="Let a URL that answered 410 be told again",
    responses={200: {"model": EnabledAnswer}},
)
def enable(body: UrlBody, state: State, caller: Who) -> dict[str, Any]:
    """What it missed is not told by itself: replay it."""
    webhook_log.enable(state.db, caller, body.url, _origin(state, body.url))
    return {"url": body.url, "enabled": True}


@router.get(
    "/webhooks/secret",
    summary="Read the secrets that sign your webhooks, the newest first",
    responses={200: {"model": SecretsAnswer}},
)
def read_secret(state: State, caller: Admin) -> dict[str, Any]:
    return _secrets_view(webhook_secrets(state.db, caller.tenant))


@router.post(
    "/webhooks/secret/rotate",
    summary="Put a new secret in place; the former one signs beside it for a while",
    responses={200: {"model": SecretsAnswer}},
)
def rotate(state: State, caller: Admin, body: Annotated[RotateBody | None, Body()] = None) -> dict[str, Any]:
    body = body or RotateBody()
    _check_secret(body.secret)
    return _secrets_view(rotate_secret(state.db, caller, body.secret, body.overlap_s))


@router.get(
    "/webhooks/{webhook_id}",
    summary="Read one delivery with what it tells",
    responses={200: {"model": DeliveryDetail}},
)
def read(webhook_id: str, state: State, caller: Who) -> dict[str, Any]:
    with state.db.read() as connection:
        found = webhook_log.get_delivery(connection, caller.tenant, webhook_id[:80].replace("\x00", "\ufffd"))
    return delivery_view(found, detail=True)


def _origin(state: ApiState, url: str) -> str:
    try:
        return postable(url, state.settings.webhook_private_addresses).shown
    except FetchRefused as err:
        raise invalid("/url", err.message) from err


def _check_secret(given: str | None) -> None:
    # Not a validator of the body: what pydantic refuses is said back, and a secret is not.
    if given is None:
        return
    try:
        size = len(base64.b64decode(given.removeprefix("whsec_"), validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if not given.startswith("whsec_") or not 24 <= size <= 64:
        raise invalid("/secret", "whsec_ and 24 to 64 random bytes as base64 are wanted")


def _page(of: ApiState, tenant: str, limit: int, cursor: str | None, **wanted: Any) -> dict[str, Any]:
    position = decode_cursor(cursor, float, str)
    before = (position[0], position[1]) if position else None
    with of.db.read() as connection:
        found = webhook_log.list_deliveries(connection, tenant, limit + 1, before=before, **wanted)
    page, more = cut(found, limit, lambda each: [each.created_at, each.id])
    return {"webhooks": [delivery_view(each) for each in page], "next_cursor": more}


def _secrets_view(secrets: list[WebhookSecret]) -> dict[str, Any]:
    return {"secrets": [shown(SecretAnswer, each) for each in secrets]}
