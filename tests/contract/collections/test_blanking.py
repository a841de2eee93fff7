"""What an item was before it was replaced or deleted is gone from its log after a while, and nobody's index changes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update

from revln.blobs import BlobStore
from revln.db import tables
from revln.db.collections.blanking import blank_replaced
from revln.db.collections.collections import Collection
from revln.db.collections.log import LogEntry, append_log
from revln.db.collections.snapshots import abandon_build, begin_build
from revln.db.engine import Database, db_now
from revln.db.jobs.results import vectors_to_bytes
from tests.collections import assert_nearest, clustered, make_collection, read, search, write
from worker.index.cache import IndexCache

AT_ONCE = -1.0  # what was written just now counts as settled
SAID = ("vector", "content_key", "text", "metadata", "image_sha256")


def say(db: Database, collection: Collection, *ids: str, op: str = "upsert") -> None:
    entries = [
        LogEntry(
            op, name, vector=vectors_to_bytes(clustered(1, 4, at)[0]), content_key=f"text:{at}", text="a secret",
            metadata={"of": "ana"}, image_sha256="0" * 64,
        ) if op == "upsert" else LogEntry(op, name)
        for at, name in enumerate(ids)
    ]  # fmt: skip
    with db.write() as connection:
        append_log(connection, collection.id, entries)


def rows(db: Database, collection: Collection) -> list[Any]:
    columns = tables.vectors.c
    with db.read() as connection:
        query = select(tables.vectors).where(columns.collection_id == collection.id).order_by(columns.seq)
        return list(connection.execute(query))


def saying(db: Database, collection: Collection) -> list[int]:
    """The rows that still say something."""
    return [row.seq for row in rows(db, collection) if any(getattr(row, name) is not None for name in SAID)]


def test_replaced_and_deleted_items_lose_all_that_they_said_and_live_ones_nothing(db: Database) -> None:
    c = make_collection(db, 4)
    say(db, c, "a", "b", "c", "a")
    say(db, c, "b", op="delete")
    before = {row.seq: tuple(row) for row in rows(db, c)}
    assert blank_replaced(db, 100) == 0, "a search that began before may still show them"
    assert blank_replaced(db, 100, AT_ONCE) == 5
    assert [row.seq for row in rows(db, c)] == [1, 2, 3, 4, 5]
    assert saying(db, c) == [3, 4]
    assert all(tuple(row) == before[row.seq] for row in rows(db, c) if row.seq in (3, 4, 5))
    assert blank_replaced(db, 100, AT_ONCE) == 0, "no row is looked at twice"


def test_it_goes_in_steps_over_all_collections(db: Database) -> None:
    one, two = make_collection(db, 4, "one"), make_collection(db, 4, "two")
    for c in (one, two):
        say(db, c, *"abcabcabc")
    steps = []
    while step := blank_replaced(db, 4, AT_ONCE):
        steps.append(step)
    assert (sum(steps), max(steps)) == (18, 4)
    assert saying(db, one) == saying(db, two) == [7, 8, 9]


def test_it_stops_at_the_first_row_that_is_young(db: Database) -> None:
    c = make_collection(db, 4)
    say(db, c, "a", "a", "a")
    old = update(tables.vectors).where(tables.vectors.c.seq <= 2)
    with db.write() as connection:
        connection.execute(old.values(created_at=db_now() - 7_200))
    assert blank_replaced(db, 100) == 2
    assert saying(db, c) == [2, 3]


def test_nothing_is_blanked_under_a_builder_and_a_dead_one_stops_nobody(db: Database) -> None:
    c = make_collection(db, 4)
    say(db, c, "a", "a")
    begun = begin_build(db, c.id, "job", 30)
    assert begun is not None
    assert blank_replaced(db, 100, AT_ONCE) == 0
    abandon_build(db, begun)
    begin_build(db, c.id, "job", -1)
    assert blank_replaced(db, 100, AT_ONCE) == 2


def test_an_index_at_any_row_of_the_log_comes_to_the_same(db: Database, tmp_path: Any) -> None:
    c, blobs = make_collection(db, 8), BlobStore(str(tmp_path))
    vectors = clustered(40, 8, 1)
    contents = {f"i{at % 9}": vectors[at] for at in range(20)}
    write(db, c, dict(list(contents.items())[:5]))
    behind = IndexCache(db, blobs)
    behind.caught_up(read(db))
    for at in range(20):
        write(db, c, {f"i{at % 9}": vectors[at]})
    write(db, c, {"i3": None})
    del contents["i3"]
    assert blank_replaced(db, 100, AT_ONCE) > 0
    for cache in (behind, IndexCache(db, blobs)):
        index = cache.caught_up(read(db))
        assert len(index) == len(contents)
        assert_nearest(search(db, c, index, vectors[39], 5), contents, vectors[39], 5)
        cache.close()
