"""Deliveries as workers see them: claim, record, give up. Every change is conditional and fenced by ``attempts``.

A claim is a lease: whoever dies between the request and its record loses it, and the delivery is made again under the
same id, which is how its receiver knows it for the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.rows import columns_of, row_to
from revln.db.upsert import insert_or_ignore
from revln.jobs.webhooks import DeliveryState

__all__ = ["Delivery", "Outcome", "claim_deliveries", "delete_old", "give_up", "record", "url_sha256"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One that is ours to make until its lease ends. Neither URL nor data may come into a log."""

    id: str
    tenant: str
    job_id: str | None
    type: str
    url: str = field(repr=False)
    lane: str
    data: dict[str, Any] = field(repr=False)
    attempts: int
    earlier_attempts: int
    created_at: float

    @property
    def tries(self) -> int:
        """This one included, since the event or its last replay."""
        return self.attempts - self.earlier_attempts


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt: the state from now on; still pending, it is tried again after ``delay_s``."""

    state: DeliveryState
    status: int | None = None
    error: str | None = None
    delay_s: float = 0.0


def claim_deliveries(
    db: Database, most: int, rooms: Mapping[str, int], room: int, shut: Collection[str], lease_s: float
) -> list[Delivery]:
    """Up to ``most`` due deliveries, of each lane up to its room.

    Lanes are taken in no order, one delivery each before any has a second: a receiver that is slow, or has a thousand
    events waiting, never stands before the others.

    Args:
        rooms: of lanes that have some under way already; ``room`` for every other.
        shut: lanes that are not to be asked now.
    """
    columns = tables.deliveries.c
    closed = [*shut, *(lane for lane, left in rooms.items() if left <= 0)]
    lanes = select(columns.lane).where(_due(), columns.lane.not_in(closed)).group_by(columns.lane)
    with db.read() as connection:
        chosen = list(connection.scalars(lanes.order_by(func.random()).limit(most)))
    if not chosen:
        return []
    with db.write() as connection:
        waiting = {lane: _candidates(connection, lane, min(rooms.get(lane, room), most)) for lane in chosen}
        disabled = _disabled(connection, [row for rows in waiting.values() for row in rows])
        taken: list[Delivery] = []
        for row in _in_turn(waiting)[:most]:
            if (row.tenant, url_sha256(row.url)) in disabled:
                _settle_unasked(connection, row.id)
            elif (claimed := _claim(connection, row.id, lease_s)) is not None:
                taken.append(claimed)
        return taken


def _due() -> Any:
    columns = tables.deliveries.c
    return and_(
        columns.state == DeliveryState.PENDING,
        columns.due_at <= db_now(),
        or_(columns.lease_until.is_(None), columns.lease_until < db_now()),
    )


def _candidates(connection: Connection, lane: str, limit: int) -> list[Any]:
    columns = tables.deliveries.c
    query = select(columns.id, columns.tenant, columns.url).where(_due(), columns.lane == lane)
    query = query.order_by(columns.due_at, columns.id).limit(limit).with_for_update(skip_locked=True)
    return list(connection.execute(query).all())


def _in_turn(waiting: Mapping[str, list[Any]]) -> list[Any]:
    """The first of each lane, then the second of each, and so on."""
    longest = max(map(len, waiting.values()), default=0)
    return [rows[place] for place in range(longest) for rows in waiting.values() if place < len(rows)]


def _disabled(connection: Connection, rows: Collection[Any]) -> set[tuple[str, str]]:
    columns = tables.disabled_webhooks.c
    hashes = {url_sha256(row.url) for row in rows}
    found = connection.execute(select(columns.tenant, columns.url_sha256).where(columns.url_sha256.in_(hashes)))
    return {(row.tenant, row.url_sha256) for row in found}


def _settle_unasked(connection: Connection, delivery_id: str) -> None:
    connection.execute(
        update(tables.deliveries)
        .where(tables.deliveries.c.id == delivery_id, _due())
        .values(state=DeliveryState.DISABLED, settled_at=db_now(), lease_until=None)
    )


def _claim(connection: Connection, delivery_id: str, lease_s: float) -> Delivery | None:
    columns = tables.deliveries.c
    row = connection.execute(
        update(tables.deliveries)
        .where(columns.id == delivery_id, _due())
        .values(attempts=columns.attempts + 1, due_at=db_now(), lease_until=db_now() + lease_s)
        .returning(*columns_of(tables.deliveries, Delivery))
    ).one_or_none()
    if row is None:
        return None
    claimed = row_to(Delivery, row)
    # Before the request: an attempt that kills its worker is in the log too.
    connection.execute(
        insert(tables.delivery_attempts).values(delivery_id=claimed.id, number=claimed.attempts, started_at=db_now())
    )
    return claimed


def record(db: Database, delivery: Delivery, outcome: Outcome) -> bool:
    """Write what came of an attempt; whether the delivery was still ours to say so."""
    columns, attempt = tables.deliveries.c, tables.delivery_attempts.c
    settled = outcome.state.settled
    with db.write() as connection:
        held = connection.execute(
            update(tables.deliveries)
            .where(
                columns.id == delivery.id,
                columns.attempts == delivery.attempts,
                columns.state == DeliveryState.PENDING,
            )
            .values(
                state=outcome.state,
                lease_until=None,
                due_at=columns.due_at if settled else db_now() + outcome.delay_s,
                settled_at=db_now() if settled else None,
            )
        ).rowcount
        connection.execute(
            update(tables.delivery_attempts)
            .where(attempt.delivery_id == delivery.id, attempt.number == delivery.attempts)
            .values(finished_at=db_now(), status=outcome.status, error=outcome.error)
        )
        if outcome.state is DeliveryState.DISABLED:
            row = {"tenant": delivery.tenant, "url_sha256": url_sha256(delivery.url)}
            now = connection.scalar(select(db_now()))
            insert_or_ignore(
                connection, tables.disabled_webhooks, [{**row, "disabled_at": now}], ("tenant", "url_sha256")
            )
        return bool(held)


def give_up(db: Database, most: int) -> int:
    """Settle as failed up to ``most`` that waited for days, their receiver being out of reach; how many."""
    columns = tables.deliveries.c
    with db.write() as connection:
        old = select(columns.id).where(_due(), columns.give_up_at < db_now()).limit(most)
        return connection.execute(
            update(tables.deliveries)
            .where(columns.id.in_(old.with_for_update(skip_locked=True)))
            .values(state=DeliveryState.FAILED, settled_at=db_now(), lease_until=None)
        ).rowcount


def delete_old(db: Database, retention_s: float, most: int) -> int:
    """Delete from the log up to ``most`` that were settled longer ago than that; how many."""
    columns = tables.deliveries.c
    with db.write() as connection:
        old = select(columns.id).where(columns.settled_at < db_now() - retention_s).limit(most)
        old = old.with_for_update(skip_locked=True)
        return connection.execute(delete(tables.deliveries).where(columns.id.in_(old))).rowcount


def url_sha256(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()
