"""Builds that nobody asked for: one job for a collection that has grown, however many workers notice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select

from revln.db import tables
from revln.db.engine import Database
from revln.settings import Settings
from tests.collections import clustered, make_collection, read, write
from worker.index.auto_build import ask_for_build, ask_for_builds


def jobs(db: Database) -> list[tuple[str, dict[str, object], str]]:
    columns = tables.jobs.c
    with db.read() as connection:
        rows = connection.execute(select(columns.collection, columns.input, columns.tag).order_by(columns.id))
        return [(row.collection, row.input, row.tag) for row in rows]


def test_a_collection_that_has_grown_gets_one_build_job(db: Database) -> None:
    c = make_collection(db, 4)
    make_collection(db, 4, "small")
    write(db, c, {f"i{n}": row for n, row in enumerate(clustered(20, 4, 0))})
    ask_for_builds(db, Settings(index_tail_rows=21))
    ask_for_builds(db, Settings(index_tail_rows=0))
    assert jobs(db) == []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ask_for_builds(db, Settings(index_tail_rows=20)), range(8)))
    wanted = {"collection": "c", "operation": "build", "index": {"type": "auto"}}
    assert jobs(db) == [("c", wanted, "index-build")]


def test_another_reason_is_another_job_and_the_same_one_is_not(db: Database) -> None:
    make_collection(db, 4)
    for why in ("snapshot 1 is damaged", "snapshot 2 is damaged", "snapshot 1 is damaged"):
        ask_for_build(db, Settings(), read(db), why, type="hnsw")
    assert [asked["index"] for _, asked, _ in jobs(db)] == [{"type": "hnsw"}] * 2
