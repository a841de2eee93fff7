"""The workers that are alive: each writes one row and keeps its heartbeat fresh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select, update

from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.upsert import insert_or_update

__all__ = ["WorkerRow", "beat", "list_workers", "register", "unregister"]

ALIVE_S = 30.0


@dataclass(frozen=True, slots=True)
class WorkerRow:
    id: str
    host: str
    pid: int
    queues: list[str]
    device: str
    models: list[dict[str, Any]]


def register(db: Database, worker: WorkerRow) -> None:
    with db.write() as connection:
        now = connection.scalar(select(db_now()))
        row = {name: getattr(worker, name) for name in WorkerRow.__slots__}
        insert_or_update(connection, tables.workers, [{**row, "started_at": now, "heartbeat_at": now}], key=("id",))


def beat(db: Database, worker_id: str, models: list[dict[str, Any]]) -> bool:
    """Whether the row was still there (it is swept after ten silent minutes)."""
    with db.write() as connection:
        statement = update(tables.workers).where(tables.workers.c.id == worker_id)
        return bool(connection.execute(statement.values(heartbeat_at=db_now(), models=models)).rowcount)


def unregister(db: Database, worker_id: str) -> None:
    with db.write() as connection:
        connection.execute(delete(tables.workers).where(tables.workers.c.id == worker_id))


def list_workers(connection: Connection) -> list[dict[str, Any]]:
    """Workers heard of within the last 30 s."""
    query = select(tables.workers).where(tables.workers.c.heartbeat_at > db_now() - ALIVE_S)
    return [dict(row._mapping) for row in connection.execute(query)]
