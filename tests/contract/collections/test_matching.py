"""A filter that is costly to test is given up, holds no write lock, and keeps nobody else waiting."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import literal_column, select

from revln.db.collections import matching
from revln.db.collections.collections import Collection
from revln.db.collections.log import LogEntry, append_log
from revln.db.engine import Database
from revln.errors import TooCostly
from revln.jobs.filters import count_conditions, parse_filter
from tests.collections import make_collection

DIM = 4
COSTLY = {"or": [{"a": {"contains": -n}} for n in range(1, 257)]}


@pytest.fixture
def long_arrays(db: Database) -> Collection:
    """60 items whose metadata is an array of 5,400 numbers, which is about all that is kept."""
    collection = make_collection(db, DIM)
    rows = [LogEntry("upsert", f"i{n}", vector=bytes(4 * DIM), metadata={"a": [1] * 5_400, "n": n}) for n in range(60)]
    with db.write() as connection:
        append_log(connection, collection.id, rows)
    return collection


def found(db: Database, collection: Collection, wanted: Any, **options: Any) -> list[int]:
    stretches = matching.matching_seqs(db, collection.id, parse_filter(wanted), 0, 60, **options)
    return [int(seq) for seqs, _ in stretches for seq in seqs]


def test_a_statement_tests_no_more_than_so_many_rows_and_conditions(
    db: Database, long_arrays: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_TESTS", 20)
    looked: list[int] = []
    wanted = {"or": [{"n": {"gte": 30}}, {"n": 3}]}
    assert count_conditions(parse_filter(wanted)) == 2
    assert found(db, long_arrays, wanted, between=lambda: looked.append(1)) == [4, *range(31, 61)]
    assert len(looked) == 6


def test_a_filter_that_takes_too_long_is_stopped_by_the_database(
    db: Database, long_arrays: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_STATEMENT_S", 0.05)
    with pytest.raises(TooCostly, match=r"0\.05 s"):
        found(db, long_arrays, COSTLY)
    monkeypatch.setattr(matching, "_STATEMENT_S", 600.0)
    assert found(db, long_arrays, {"n": 5}) == [6], "the limit is gone with its transaction"


def test_all_stretches_together_have_a_limit(
    db: Database, long_arrays: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_TESTS", 10)
    monkeypatch.setattr(matching, "_ALL_S", 0.0)
    with pytest.raises(TooCostly, match="50 rows are still to come"):
        found(db, long_arrays, {"n": 5})


def test_a_connection_that_was_stopped_is_good_for_the_next_transaction(db: Database) -> None:
    count = literal_column("(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < 100000000) "
                           "SELECT count(*) FROM c)")  # fmt: skip
    for _ in range(3):
        with pytest.raises(TooCostly), db.read(limit_s=0.02) as connection:
            connection.execute(select(count)).all()
        with db.write() as connection:
            assert connection.scalar(select(literal_column("1"))) == 1
