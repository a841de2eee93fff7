"""What an operator asked every worker to do with a model: load it, or let go of it.

Rows and not a broadcast: Celery's remote control goes by Redis pub/sub, so that a worker which is just reconnecting
misses it and nobody knows; and its handler runs in the thread that takes jobs in, where a load may not. A row waits
until each worker has read it, and what became of it stands in the worker's own row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from revln.access import Caller
from revln.db import tables
from revln.db.access.audit import record
from revln.db.engine import Database, db_now

__all__ = ["Order", "Wanted", "model_orders", "place_order"]

Wanted = Literal["load", "unload"]


@dataclass(frozen=True, slots=True)
class Order:
    """The last order for one model; ``number`` counts the orders of that model."""

    name: str
    wanted: Wanted
    number: int


def place_order(db: Database, name: str, wanted: Wanted, by: Caller) -> Order:
    """It replaces an earlier one for the same model that workers have not read yet."""
    table = tables.model_orders
    again = update(table).where(table.c.name == name).returning(table.c.number)
    while True:
        with db.write() as connection:
            found = connection.scalar(again.values(wanted=wanted, number=table.c.number + 1, placed_at=db_now()))
            if found is not None:
                record(connection, by, f"model.{wanted}", name)
                return Order(name, wanted, int(found))
        try:
            with db.write() as connection:
                connection.execute(insert(table).values(name=name, wanted=wanted, number=1, placed_at=db_now()))
                record(connection, by, f"model.{wanted}", name)
            return Order(name, wanted, 1)
        except IntegrityError:
            continue  # somebody else placed the first one just now


def model_orders(connection: Connection) -> list[Order]:
    table = tables.model_orders
    rows = connection.execute(select(table.c.name, table.c.wanted, table.c.number))
    return [Order(row.name, row.wanted, row.number) for row in rows]
