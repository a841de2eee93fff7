"""What is asked of a few rows of a large collection reads these rows, on a PostgreSQL that has no statistics of it yet.

Its planner then takes every collection for small, and would rather read the whole of it than look up a list of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Connection, text

from revln.db.collections.collections import Collection, item_vectors, list_items, live_seqs, rows_by_seq
from revln.db.collections.generations import changes_after
from revln.db.collections.log import LogEntry, append_log, read_log, read_vectors
from revln.db.embeddings import cached_vectors, store_vectors
from revln.db.engine import Database
from revln.db.migrate import upgrade
from revln.settings import Settings
from tests.collections import make_collection
from tests.conftest import fresh_database

ROWS, DIM, FEW = 6_000, 64, 100
TABLES = ("vectors", "items", "embeddings")

Filled = tuple[Database, Collection]


@pytest.fixture(scope="module")
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    with fresh_database("postgresql", Path(), request) as url:
        upgrade(Settings(database_url=url))
        db = Database(url)
        with db.write() as connection:
            for table in TABLES:
                connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = false)"))
        collection = make_collection(db, DIM)
        with db.write() as connection:
            append_log(connection, collection.id, [put(f"i{n}") for n in range(ROWS)])
        store_vectors(db, "f", {f"text:{n}": bytes(4 * DIM) for n in range(ROWS)})
        yield db, collection
        db.close()


def put(item_id: str) -> LogEntry:
    return LogEntry("upsert", item_id, vector=bytes(4 * DIM), metadata={"a": 1})


SEQS = list(range(100, 100 + FEW))
IDS = [f"i{n}" for n in range(200, 200 + FEW)]

LOOKUPS: dict[str, Callable[[Connection, str], object]] = {
    "rows_by_seq": lambda connection, of: rows_by_seq(connection, of, SEQS),
    "live_seqs": lambda connection, of: live_seqs(connection, of, IDS),
    "item_vectors": lambda connection, of: item_vectors(connection, of, IDS),
    "list_items": lambda connection, of: list(list_items(connection, of, FEW, "i2")),
    "read_vectors": lambda connection, of: read_vectors(connection, of, np.array(SEQS), DIM)[0],
    "read_log": lambda connection, of: read_log(connection, of, 50, DIM, FEW).seqs,
    "changes_after": lambda connection, of: changes_after(connection, of, 50, FEW).live,
    "cached_vectors": lambda connection, _: cached_vectors(connection, "f", [f"text:{n}" for n in SEQS]),
    "append": lambda connection, of: append_log(connection, of, [put(item_id) for item_id in IDS]),
    "delete": lambda connection, of: append_log(connection, of, [LogEntry("delete", item_id) for item_id in IDS]),
}


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_a_lookup_reads_the_rows_that_it_asks_for(filled: Filled, lookup: str) -> None:
    db, collection = filled
    with db.engine.connect() as connection:
        before = rows_read(connection)
        found = LOOKUPS[lookup](connection, collection.id)
        read = rows_read(connection) - before
        connection.rollback()
    assert len(found) == FEW  # type: ignore[arg-type]
    assert read <= 6 * FEW, f"{read} rows were read of {ROWS}"


def rows_read(connection: Connection) -> int:
    query = (
        "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables WHERE relname = ANY(:t)"
    )
    return int(connection.scalar(text(query), {"t": list(TABLES)}) or 0)
