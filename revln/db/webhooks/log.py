"""Deliveries as their tenant sees them: listed with their attempts, replayed, tested, enabled again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update

from revln.access import Caller
from revln.db import tables
from revln.db.access import audit
from revln.db.engine import Database, db_now
from revln.db.webhooks.deliveries import url_sha256
from revln.db.webhooks.outbox import add_delivery
from revln.errors import Conflict, NotFound
from revln.jobs.webhooks import GIVE_UP_S, TEST_EVENT, TRIED_ONCE, DeliveryState

__all__ = [
    "Attempt",
    "LoggedDelivery",
    "count_by_state",
    "enable",
    "get_delivery",
    "list_deliveries",
    "replay",
    "replay_one",
    "send_test",
]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request; without an end it is under way, or its worker died."""

    number: int
    started_at: float
    finished_at: float | None
    status: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class LoggedDelivery:
    id: str
    job_id: str | None
    type: str
    url: str
    state: DeliveryState
    data: dict[str, Any]
    created_at: float
    due_at: float
    settled_at: float | None
    attempts: Sequence[Attempt]


def list_deliveries(
    connection: Connection,
    tenant: str,
    limit: int,
    *,
    job_id: str | None = None,
    state: str | None = None,
    before: tuple[float, str] | None = None,
) -> list[LoggedDelivery]:
    """Newest first; ``before`` is the (created_at, id) of the last one of the page before."""
    columns = tables.deliveries.c
    conditions: list[ColumnElement[bool]] = [
        columns[name] == value for name, value in (("job_id", job_id), ("state", state)) if value is not None
    ]
    if before is not None:
        at, delivery_id = before
        conditions.append(or_(columns.created_at < at, and_(columns.created_at == at, columns.id < delivery_id)))
    query = select(tables.deliveries).where(columns.tenant == tenant, *conditions)
    rows = connection.execute(query.order_by(columns.created_at.desc(), columns.id.desc()).limit(limit)).all()
    return _with_attempts(connection, rows)


def get_delivery(connection: Connection, tenant: str, delivery_id: str) -> LoggedDelivery:
    """Raises NotFound."""
    columns = tables.deliveries.c
    rows = connection.execute(
        select(tables.deliveries).where(columns.tenant == tenant, columns.id == delivery_id)
    ).all()
    if not rows:
        raise NotFound(f"There is no webhook {delivery_id!r}; the log keeps them for REVLN_WEBHOOK_RETENTION_S.")
    return _with_attempts(connection, rows)[0]


def _with_attempts(connection: Connection, rows: Sequence[Any]) -> list[LoggedDelivery]:
    table = tables.delivery_attempts
    query = select(table).where(table.c.delivery_id.in_([row.id for row in rows])).order_by(table.c.number)
    attempts = defaultdict(list)
    for row in connection.execute(query):
        attempts[row.delivery_id].append(Attempt(row.number, row.started_at, row.finished_at, row.status, row.error))
    return [
        LoggedDelivery(
            id=row.id,
            job_id=row.job_id,
            type=row.type,
            url=row.url,
            state=DeliveryState(row.state),
            data=row.data,
            created_at=row.created_at,
            due_at=row.due_at,
            settled_at=row.settled_at,
            attempts=attempts[row.id],
        )
        for row in rows
    ]


def replay(
    db: Database, by: Caller, *, job_id: str | None = None, since: float | None = None, until: float | None = None
) -> int:
    """Try again now whatever was not delivered; how many. Progress is left out: it is no news any more."""
    columns = tables.deliveries.c
    conditions = [
        columns.tenant == by.tenant,
        columns.type.not_in(TRIED_ONCE),
        columns.state != DeliveryState.DELIVERED,
    ]
    if job_id is not None:
        conditions.append(columns.job_id == job_id)
    if since is not None:
        conditions.append(columns.created_at >= since)
    if until is not None:
        conditions.append(columns.created_at <= until)
    with db.write() as connection:
        audit.record(connection, by, "webhook.replay", job_id or "a span of time")
        return _replay(connection, conditions)


def replay_one(db: Database, by: Caller, job_id: str, delivery_id: str) -> None:
    """Try one again now, also if it was delivered: its receiver may have lost it.

    Raises:
        NotFound, Conflict: it is under way, or its URL is disabled.
    """
    columns = tables.deliveries.c
    with db.write() as connection:
        found = get_delivery(connection, by.tenant, delivery_id)
        if found.job_id != job_id:
            raise NotFound(f"Webhook {delivery_id} is not of job {job_id}.")
        if _is_disabled(connection, by.tenant, found.url):
            raise Conflict(
                f"The URL of webhook {delivery_id} answered 410 and is disabled: POST /v1/webhooks/enable it first."
            )
        if not _replay(connection, [columns.tenant == by.tenant, columns.id == delivery_id]):
            raise Conflict(f"Webhook {delivery_id} is under way. Read it again in a few seconds.")
        audit.record(connection, by, "webhook.replay", delivery_id)


def _replay(connection: Connection, conditions: Sequence[ColumnElement[bool]]) -> int:
    """Begin the schedule anew. What is under way is left alone: its sender still has to say what came of it."""
    columns = tables.deliveries.c
    idle = or_(columns.lease_until.is_(None), columns.lease_until < db_now())
    # Locked in one order: two replays at once would else wait for each other.
    chosen = select(columns.id).where(*conditions, idle).order_by(columns.id).with_for_update()
    return connection.execute(
        update(tables.deliveries)
        .where(columns.id.in_(chosen))
        .values(
            state=DeliveryState.PENDING,
            due_at=db_now(),
            lease_until=None,
            give_up_at=db_now() + GIVE_UP_S,
            earlier_attempts=columns.attempts,
            settled_at=None,
        )
    ).rowcount


def send_test(db: Database, by: Caller, url: str, origin: str) -> LoggedDelivery:
    """Put a test into the outbox; it is tried once."""
    with db.write() as connection:
        if _is_disabled(connection, by.tenant, url):
            raise Conflict("This URL answered 410 and is disabled. POST /v1/webhooks/enable with it first.")
        data = {"message": "This is a test of your webhook."}
        delivery_id = add_delivery(connection, by.tenant, url, origin, TEST_EVENT, data)
        audit.record(connection, by, "webhook.test", delivery_id)
        return get_delivery(connection, by.tenant, delivery_id)


def enable(db: Database, by: Caller, url: str, origin: str) -> None:
    """Let a URL that answered 410 be told again.

    Raises NotFound if it is not disabled.
    """
    columns = tables.disabled_webhooks.c
    this = and_(columns.tenant == by.tenant, columns.url_sha256 == url_sha256(url))
    with db.write() as connection:
        if not connection.execute(delete(tables.disabled_webhooks).where(this)).rowcount:
            raise NotFound("This URL is not disabled: it never answered 410, or was enabled again since.")
        audit.record(connection, by, "webhook.enable", origin)  # the rest of a URL may be a secret


def count_by_state(connection: Connection) -> dict[str, int]:
    state = tables.deliveries.c.state
    return {row[0]: int(row[1]) for row in connection.execute(select(state, func.count()).group_by(state))}


def _is_disabled(connection: Connection, tenant: str, url: str) -> bool:
    columns = tables.disabled_webhooks.c
    query = select(columns.disabled_at).where(columns.tenant == tenant, columns.url_sha256 == url_sha256(url))
    return connection.scalar(query) is not None
