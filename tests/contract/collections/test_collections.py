"""A collection's log: gapless, in the order of commits, and equal to the state that it amounts to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from revln.access import DEFAULT_TENANT, OWNER
from revln.db.collections import collections
from revln.db.collections.collections import Collection
from revln.db.collections.log import LogEntry, append_log, read_log
from revln.db.embeddings import cached_vectors, store_vectors
from revln.db.engine import Database
from revln.db.jobs.results import vectors_to_bytes
from revln.errors import Conflict, NotFound

DIM = 4


def make(db: Database, name: str = "c", fingerprint: str = "f") -> Collection:
    return collections.create_collection(db, OWNER, name, "m", fingerprint, DIM, {})[0]


def put(item_id: str, seed: int = 0) -> LogEntry:
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return LogEntry("upsert", item_id, vector=vectors_to_bytes(vector), text=f"t{seed}", metadata={"s": seed})


def append(db: Database, collection: Collection, *entries: LogEntry) -> list[int | None]:
    with db.write() as connection:
        return append_log(connection, collection.id, entries)


def read(db: Database, name: str = "c") -> Collection:
    with db.read() as connection:
        return collections.get_collection(connection, DEFAULT_TENANT, name)


def test_every_change_takes_the_next_seq_and_names_the_row_it_replaces(db: Database) -> None:
    c = make(db)
    assert append(db, c, put("a", 1), put("b", 2)) == [1, 2]
    assert append(db, c, put("a", 3), LogEntry("delete", "b"), LogEntry("delete", "never")) == [3, 4, None]
    assert (read(db).head_seq, read(db).count) == (4, 1)
    with db.read() as connection:
        page = read_log(connection, c.id, 0, DIM)
    assert page.seqs.tolist() == [1, 2, 3]
    assert page.void.tolist() == [1, 2]
    assert page.head_seq == 4


def test_an_id_twice_in_one_batch_is_applied_in_order(db: Database) -> None:
    c = make(db)
    assert append(db, c, put("a", 1), put("a", 2), LogEntry("delete", "a"), put("a", 4)) == [1, 2, 3, 4]
    assert read(db).count == 1
    with db.read() as connection:
        assert [item["text"] for item in collections.list_items(connection, c.id, 10)] == ["t4"]
        assert read_log(connection, c.id, 0, DIM).void.tolist() == [1, 2]


def test_appending_from_many_threads_leaves_no_gap_and_no_double(db: Database) -> None:
    c = make(db)
    with ThreadPoolExecutor(8) as pool:
        seqs = [seq for found in pool.map(lambda n: append(db, c, put(f"i{n}", n), put("shared", n)), range(40))
                for seq in found]  # fmt: skip
    assert sorted(seq for seq in seqs if seq) == list(range(1, 81))
    assert (read(db).head_seq, read(db).count) == (80, 41)


def test_the_log_read_in_stretches_is_the_log_read_at_once(db: Database) -> None:
    c = make(db)
    append(db, c, *(put(f"i{n % 7}", n) for n in range(25)))
    with db.read() as connection:
        whole = read_log(connection, c.id, 0, DIM)
        parts, at = [], 0
        while (page := read_log(connection, c.id, at, DIM, limit=4)).head_seq != at:
            parts.append(page)
            at = page.head_seq
    assert np.array_equal(np.concatenate([page.vectors for page in parts]), whole.vectors)
    assert np.concatenate([page.void for page in parts]).tolist() == whole.void.tolist()


def test_items_page_in_the_order_of_their_ids(db: Database) -> None:
    c = make(db)
    append(db, c, *(put(name) for name in ("d", "a", "c", "b")))
    with db.read() as connection:
        first = list(collections.list_items(connection, c.id, 3))
        rest = list(collections.list_items(connection, c.id, 3, first[-1]["item_id"]))
    assert [item["item_id"] for item in first + rest] == ["a", "b", "c", "d"]


def test_the_vector_of_an_id_is_its_newest(db: Database) -> None:
    c = make(db)
    append(db, c, put("a", 1), put("a", 2))
    with db.read() as connection:
        assert collections.item_vectors(connection, c.id, ["a", "b"]) == {"a": put("a", 2).vector}


def test_a_collection_made_twice_is_one_and_another_model_is_refused(db: Database) -> None:
    c, new = collections.create_collection(db, OWNER, "c", "m", "f", DIM, {})
    again, newer = collections.create_collection(db, OWNER, "c", "m", "f", DIM, {})
    assert (new, newer, again.id) == (True, False, c.id)
    with pytest.raises(Conflict, match="exists with model"):
        make(db, fingerprint="other")


def test_a_deleted_collection_takes_nothing_more_and_a_new_one_of_that_name_is_another(db: Database) -> None:
    c = make(db)
    append(db, c, put("a"))
    collections.delete_collection(db, OWNER, "c")
    with pytest.raises(NotFound):
        read(db)
    with pytest.raises(NotFound):
        append(db, c, put("b"))
    with db.read() as connection:
        assert collections.collection_ids(connection) == set()
    assert make(db).id != c.id


def test_vectors_are_kept_once_for_each_content_and_model(db: Database) -> None:
    store_vectors(db, "f1", {"text:a": b"1111", "text:b": b"2222"})
    store_vectors(db, "f1", {"text:a": b"9999"})
    store_vectors(db, "f2", {"text:a": b"3333"})
    with db.read() as connection:
        assert cached_vectors(connection, "f1", ["text:a", "text:b", "text:c"]) == {
            "text:a": b"1111",
            "text:b": b"2222",
        }
        assert cached_vectors(connection, "f2", ["text:a"]) == {"text:a": b"3333"}
