"""Snapshots in the database: one builder, one publication, a way back, and nothing that is served is pruned."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from revln.access import OWNER
from revln.db.collections.collections import Collection, delete_collection
from revln.db.collections.snapshots import (
    Made,
    Snapshot,
    SnapshotState,
    abandon_build,
    begin_build,
    current_snapshot,
    delete_snapshot,
    is_referenced,
    list_snapshots,
    long_tails,
    publish,
    renew_build,
    roll_back,
    set_damaged,
)
from revln.db.engine import Database
from revln.errors import Conflict, LeaseLost, NotFound
from tests.collections import clustered, make_collection, read, write


def made(sha: str = "0", up_to_seq: int = 5) -> Made:
    return Made(
        type="flat", factory="IDMap,Flat", parameters={"width": 0, "rerank": 0}, up_to_seq=up_to_seq, count=up_to_seq,
        sha256=sha * 64, size_bytes=1, recall=1.0, qps=2.0, exact_qps=2.0, build_s=0.1,
    )  # fmt: skip


def published(db: Database, collection: Collection, sha: str = "0", keep: int = 3, up_to_seq: int = 5) -> Snapshot:
    begun = begin_build(db, collection.id, f"job-{sha}", 30)
    assert begun is not None
    with db.write() as connection:
        return publish(connection, collection.id, begun, made(sha, up_to_seq), keep)


def current(db: Database, collection: Collection) -> str | None:
    with db.read() as connection:
        found = current_snapshot(connection, collection.id)
    assert (found.id if found else None) == read(db).snapshot_id
    return found.id if found else None


def test_of_many_builders_at_once_one_begins(db: Database) -> None:
    c = make_collection(db, 4)
    with ThreadPoolExecutor(6) as pool:
        begun = list(pool.map(lambda n: begin_build(db, c.id, f"job-{n}", 30), range(12)))
    assert sum(one is not None for one in begun) == 1


def test_a_builder_whose_lease_ran_out_publishes_nothing(db: Database) -> None:
    c = make_collection(db, 4)
    slow = begin_build(db, c.id, "slow", -1.0)
    assert slow is not None
    quick = begin_build(db, c.id, "quick", 30)
    assert quick is not None
    with pytest.raises(LeaseLost):
        renew_build(db, slow, 30)
    with pytest.raises(LeaseLost), db.write() as connection:
        publish(connection, c.id, slow, made("1"), 3)
    assert current(db, c) is None
    with db.write() as connection:
        publish(connection, c.id, quick, made("2"), 3)
    assert current(db, c) == quick


def test_a_job_that_comes_again_takes_over_from_itself_and_an_abandoned_build_is_anyones(db: Database) -> None:
    c = make_collection(db, 4)
    first = begin_build(db, c.id, "job", 30)
    second = begin_build(db, c.id, "job", 30)
    assert first is not None
    assert second is not None
    with pytest.raises(LeaseLost):
        renew_build(db, first, 30)
    assert begin_build(db, c.id, "other", 30) is None
    abandon_build(db, second)
    assert begin_build(db, c.id, "other", 30) is not None


def test_rollback_goes_to_the_one_before_or_to_a_given_one(db: Database) -> None:
    c = make_collection(db, 4)
    one, two, three = (published(db, c, sha) for sha in "123")
    assert current(db, c) == three.id
    assert roll_back(db, c.id, None, OWNER).id == two.id
    assert roll_back(db, c.id, None, OWNER).id == one.id == current(db, c)
    with pytest.raises(Conflict, match="before the current one"):
        roll_back(db, c.id, None, OWNER)
    assert roll_back(db, c.id, three.id, OWNER).id == current(db, c) == three.id
    with pytest.raises(NotFound):
        roll_back(db, c.id, "no such", OWNER)
    other = make_collection(db, 4, "other")
    with pytest.raises(NotFound):
        roll_back(db, other.id, one.id, OWNER)


def test_the_oldest_are_pruned_but_never_the_one_that_is_served(db: Database) -> None:
    c = make_collection(db, 4)
    one = published(db, c, "1", keep=2)
    two = published(db, c, "2", keep=2)
    three = published(db, c, "3", keep=2)
    with db.read() as connection:
        assert [found.id for found in list_snapshots(connection, c.id)] == [three.id, two.id]
        assert not is_referenced(connection, one.sha256)
        assert is_referenced(connection, two.sha256)
    building = begin_build(db, c.id, "job", 30)
    assert roll_back(db, c.id, two.id, OWNER).id == two.id
    assert building is not None
    with db.write() as connection:
        four = publish(connection, c.id, building, made("4"), 1)
    with db.read() as connection:
        assert [found.id for found in list_snapshots(connection, c.id)] == [four.id]


def test_any_but_the_one_that_is_served_is_deleted(db: Database) -> None:
    c = make_collection(db, 4)
    one, two = published(db, c, "1"), published(db, c, "2")
    with pytest.raises(Conflict, match=two.id):
        delete_snapshot(db, c.id, two.id, OWNER)
    delete_snapshot(db, c.id, one.id, OWNER)
    with pytest.raises(NotFound):
        delete_snapshot(db, c.id, one.id, OWNER)
    begun = begin_build(db, c.id, "job", 30)
    assert begun is not None
    with pytest.raises(NotFound):
        delete_snapshot(db, c.id, begun, OWNER)
    with db.read() as connection:
        assert [found.id for found in list_snapshots(connection, c.id)] == [two.id]
        assert not is_referenced(connection, one.sha256), "its file is nobody's now"


def test_a_damaged_one_is_replaced_by_the_one_before_it_and_reported_once(db: Database) -> None:
    c = make_collection(db, 4)
    one, two = published(db, c, "1"), published(db, c, "2")
    assert [set_damaged(db, two), set_damaged(db, two)] == [True, False]
    assert current(db, c) == one.id
    with pytest.raises(Conflict, match="damaged"):
        roll_back(db, c.id, two.id, OWNER)
    assert set_damaged(db, one)
    assert current(db, c) is None
    with db.read() as connection:
        assert {found.state for found in list_snapshots(connection, c.id)} == {SnapshotState.DAMAGED}


def test_a_long_tail_is_measured_from_the_newest_good_snapshot(db: Database) -> None:
    def grown(least: int) -> list[str | None]:
        with db.read() as connection:
            return [snapshot_id for _, snapshot_id in long_tails(connection, least, 0.5)]

    c = make_collection(db, 4)
    assert grown(0) == []
    write(db, c, {f"i{n}": row for n, row in enumerate(clustered(10, 4, 0))})
    assert (grown(10), grown(11)) == ([None], [])
    one = published(db, c, "1", up_to_seq=4)
    assert (grown(6), grown(7)) == ([one.id], [])
    two = published(db, c, "2", up_to_seq=8)
    assert grown(1) == []  # two rows are less than half of eight
    roll_back(db, c.id, one.id, OWNER)
    assert grown(1) == []  # gone back on purpose
    set_damaged(db, two)
    assert grown(1) == [one.id]


def test_a_deleted_collection_takes_its_snapshots_and_its_builder_along(db: Database) -> None:
    c = make_collection(db, 4)
    one, begun = published(db, c, "1"), begin_build(db, c.id, "job", 30)
    assert begun is not None
    delete_collection(db, OWNER, "c")
    with pytest.raises(LeaseLost):
        renew_build(db, begun, 30)
    with pytest.raises(NotFound), db.write() as connection:
        publish(connection, c.id, begun, made("2"), 3)
    with pytest.raises(NotFound):
        begin_build(db, c.id, "job", 30)
    assert not set_damaged(db, one)
    with db.read() as connection:
        assert list_snapshots(connection, c.id) == []
