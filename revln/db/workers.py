"""The workers that are alive: each writes one row, keeps its heartbeat fresh, and notes when it last heard itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from revln.db import tables
from revln.db.engine import Database, db_now
from revln.db.upsert import insert_or_update

__all__ = ["WorkerRow", "beat", "list_workers", "register", "unregister", "workers_of"]

ALIVE_S = 30.0
HEARS_S = 45.0  # it listens for itself every five seconds, and ends itself after REVLN_DEAF_S


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


def beat(db: Database, worker_id: str, models: list[dict[str, Any]], silent_s: float, busy: bool) -> bool:
    """Whether the row was still there (it is swept after ten silent minutes).

    ``silent_s``: since the worker heard one of its own messages, or could not have, because Redis was away or it was
    busy.
    """
    values = {"heartbeat_at": db_now(), "models": models, "heard_at": db_now() - silent_s, "busy": busy}
    with db.write() as connection:
        statement = update(tables.workers).where(tables.workers.c.id == worker_id)
        return bool(connection.execute(statement.values(**values)).rowcount)


def unregister(db: Database, worker_id: str) -> None:
    with db.write() as connection:
        connection.execute(delete(tables.workers).where(tables.workers.c.id == worker_id))


def list_workers(connection: Connection) -> list[dict[str, Any]]:
    """Workers heard of within the last 30 s, each with its ``trouble``, "" if it has none."""
    return [row for row in _rows(connection) if row["silent_s"] < ALIVE_S]


def workers_of(connection: Connection, host: str) -> list[dict[str, Any]]:
    """Those of one machine, the silent ones too: for each process id the newest, because ids come again."""
    rows = sorted(_rows(connection), key=lambda row: row["started_at"])
    return list({row["pid"]: row for row in rows if row["host"] == host}.values())


def _rows(connection: Connection) -> list[dict[str, Any]]:
    columns = tables.workers.c
    deaf_s = db_now() - func.coalesce(columns.heard_at, columns.started_at)
    query = select(tables.workers, (db_now() - columns.heartbeat_at).label("silent_s"), deaf_s.label("deaf_s"))
    return [{**row._mapping, "trouble": _trouble(row)} for row in connection.execute(query)]


def _trouble(row: Any) -> str:
    if row.silent_s >= ALIVE_S:
        return f"it has not been heard of for {row.silent_s:.0f} s"
    if row.deaf_s >= HEARS_S:
        return f"it is deaf: its own messages have not come back for {row.deaf_s:.0f} s"
    return ""
