"""Whose turn it is in a queue: fair between tenants, however much one of them hands in.

Self-clocked fair queueing (Golestani, INFOCOM 1994). A queued chunk has a ``turn``, given when its job comes in: what
was the tenant's last turn in this queue, or the turn that is being served now if that is later, plus the items of the
chunk. Chunks run in the order of their turns. So a tenant that hands in ten items finds itself behind ten items or so
of each other tenant, and not behind all of the million that one of them handed in before; and a tenant that was away
has saved nothing up. The order lies in an index: the next chunk is one look-up, whatever waits.

A message on Redis is a doorbell: whoever hears it runs the chunk whose turn it is, not the one that the message names.
Thus the order holds whatever was published before, and by whom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, literal_column, or_, select, tuple_, union_all, update

from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.keyed import in_index_order
from revln.db.rows import row_to
from revln.jobs.kinds import all_queues
from revln.jobs.state import ChunkState

__all__ = [
    "QUEUED",
    "ChunkAddress",
    "Turn",
    "due",
    "last_turn",
    "queue_of",
    "renumber",
    "take_unpublished",
    "waiting_queues",
]

_C = tables.chunks.c
# Written out, not a parameter: only so do both databases see that their indexes of what is queued serve the query.
QUEUED = _C.state == literal_column(f"'{ChunkState.QUEUED}'")


@dataclass(frozen=True, slots=True)
class ChunkAddress:
    """What a message carries, and nothing else."""

    job_id: str
    number: int
    kind: str
    queue: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A chunk that may be claimed; ``crash_count``: how many workers died while they ran it."""

    job_id: str
    number: int
    crash_count: int
    kind: str
    input: dict[str, Any]

    @property
    def address(self) -> tuple[str, int]:
        return self.job_id, self.number


def last_turn(connection: Connection, tenant: str, queue: str) -> int:
    """The turn after which a tenant's next chunk in a queue has its own.

    The caller holds the tenant's lock (`revln.db.jobs.usage`), or two jobs at once would be given the same turns.
    """
    in_index_order(connection)
    of_mine = (QUEUED, _C.queue == queue, _C.tenant == tenant)
    mine = select(_C.turn).where(*of_mine).order_by(_C.turn.desc()).limit(1)
    served = select(func.max(_C.turn)).where(_C.state == ChunkState.RUNNING, _C.queue == queue)
    # Not those that wait to be tried again: their turns were long ago.
    next_ = (
        select(_C.turn - _C.n_items)
        .where(QUEUED, _C.queue == queue, _C.run_at <= db_now())
        .order_by(_C.turn, _C.job_id, _C.number)
        .limit(1)
    )
    own, now, soon = connection.execute(
        select(mine.scalar_subquery(), served.scalar_subquery(), next_.scalar_subquery())
    ).one()
    return max(own or 0, (now if now is not None else soon) or 0)


def renumber(connection: Connection, job_id: str, after: int) -> None:
    """Give the queued chunks of a job new turns, in their order."""
    turns = (
        select(_C.number, func.sum(_C.n_items).over(order_by=_C.number).label("reached"))
        .where(_C.job_id == job_id, _C.state == ChunkState.QUEUED)
        .subquery()
    )
    connection.execute(
        update(tables.chunks)
        .where(_C.job_id == job_id, _C.number == turns.c.number, _C.state == ChunkState.QUEUED)
        .values(turn=after + turns.c.reached)
    )


def queue_of(connection: Connection, job_id: str, number: int) -> str | None:
    """The queue of a chunk, or None if it is gone."""
    found: str | None = connection.scalar(select(_C.queue).where(_C.job_id == job_id, _C.number == number))
    return found


def due(connection: Connection, queue: str, limit: int) -> list[Turn]:
    """The next chunks of a queue, in the order of their turns."""
    jobs = tables.jobs.c
    in_index_order(connection)
    rows = connection.execute(
        select(_C.job_id, _C.number, _C.crash_count, jobs.kind, jobs.input)
        .join(tables.jobs, jobs.id == _C.job_id)
        # What nobody may claim must not stand at the head of the queue for ever.
        .where(QUEUED, _C.queue == queue, _C.run_at <= db_now(), _C.attempt < _C.max_attempts)
        .order_by(_C.turn, _C.job_id, _C.number)
        .limit(limit)
    )
    return [row_to(Turn, row) for row in rows]


def take_unpublished(db: Database, queue: str, limit: int, republish_s: float, *, again: bool) -> list[ChunkAddress]:
    """Mark up to ``limit`` queued chunks as published, by turn, and return them to be published.

    With ``again``, also those that were published over ``republish_s`` ago and that nobody claimed: only sensible while
    the queue is empty, else the message is still on its way.
    """
    never = _C.published_at.is_(None)
    waiting = or_(never, _C.published_at < db_now() - republish_s) if again else never
    with db.write() as connection:
        in_index_order(connection)
        chosen = (
            select(_C.job_id, _C.number, tables.jobs.c.kind)
            .join(tables.jobs, tables.jobs.c.id == _C.job_id)
            .where(QUEUED, _C.queue == queue, _C.run_at <= db_now(), waiting)
            .order_by(_C.turn, _C.job_id, _C.number)
            .limit(limit)
            .with_for_update(skip_locked=True, of=tables.chunks)
        )
        rows = connection.execute(chosen).all()
        if rows:
            taken = tuple_(_C.job_id, _C.number).in_([(row.job_id, row.number) for row in rows])
            connection.execute(update(tables.chunks).where(taken).values(published_at=db_now()))
    return [ChunkAddress(row.job_id, row.number, row.kind, queue) for row in rows]


def waiting_queues(db: Database) -> list[str]:
    """The queues that have chunks to run now: one look at each, not at every chunk."""
    looks: list[Any] = [
        select(literal_column(f"'{queue}'").label("queue")).where(
            select(_C.job_id)
            .where(QUEUED, _C.queue == queue, _C.run_at <= db_now())
            .order_by(_C.turn)  # along the index: what EXISTS may do is to look for the first one in the whole table
            .limit(1)
            .scalar_subquery()
            .is_not(None)
        )
        for queue in all_queues()
    ]
    with db.read() as connection:
        in_index_order(connection)
        return list(connection.scalars(union_all(*looks)))
