"""Whatever order chunks end in, a collection holds what its jobs say one after the other, as they were accepted.

Jobs are real rows; a chunk's changes are written as the handlers write them. What runs when is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from revln.access import DEFAULT_TENANT, OWNER
from revln.db import tables
from revln.db.collections.collections import Collection, create_collection, get_collection, list_items
from revln.db.collections.generations import begin_generation, changes_after, follow, lock_heads, swap
from revln.db.collections.items import begin_delete, delete_matching
from revln.db.collections.log import LogEntry, append_log
from revln.db.collections.matching import matching_seqs
from revln.db.collections.order import position_of, prune_order
from revln.db.engine import Database
from revln.db.jobs.changes import cancel_job, retry_job
from revln.db.jobs.chunks import ChunkResult, claim_chunk, finish_chunk
from revln.db.jobs.read import Job, get_job
from revln.db.jobs.submit import Inline, NewChunk
from revln.jobs.filters import matches, parse_filter
from tests.builders import make_job

_names = count()
_VECTOR = b"\0\0\x80?" + b"\0" * 4
_ids = st.sampled_from(["a", "b", "c"])
_filters = st.sampled_from([{"n": {"lt": 2}}, {"n": 1}, {"n": {"exists": True}}, {"not": {"n": 1}}])
_jobs = st.one_of(
    st.tuples(st.just("upsert"), st.lists(st.tuples(_ids, st.integers(0, 3)), min_size=1, max_size=4)),
    st.tuples(st.just("delete"), st.lists(_ids, min_size=1, max_size=2)),
    st.tuples(st.just("filter"), _filters),
)
_steps = st.one_of(
    st.tuples(st.just("accept"), _jobs),
    st.tuples(st.just("run"), st.integers(0, 99)),
    st.tuples(st.just("cancel"), st.integers(0, 99)),
    st.tuples(st.sampled_from(["retry", "prune", "migrate"]), st.integers(0, 99)),
)


@dataclass
class Ledger:
    """A collection, its jobs, and their chunks that are still to be run."""

    db: Database
    name: str
    accepted: list[tuple[Job, str, Any]] = field(default_factory=list)
    waiting: list[tuple[int, int]] = field(default_factory=list)  # which job, which chunk
    canceled: dict[int, list[int]] = field(default_factory=dict)

    @property
    def collection(self) -> Collection:
        with self.db.read() as connection:
            return get_collection(connection, DEFAULT_TENANT, self.name)

    def accept(self, kind: str, what: Any) -> None:
        items = [None] if kind == "filter" else what
        job = make_job(
            self.db, kind="index", queue="index.normal", collection=self.name, total=len(items),
            input={"collection": self.name, "operation": "upsert" if kind == "upsert" else "delete"},
            chunks=[NewChunk(at, 1, Inline([one])) for at, one in enumerate(items)],
        )  # fmt: skip
        self.waiting += [(len(self.accepted), at) for at in range(len(items))]
        self.accepted.append((job, kind, what))

    def run(self, which: int) -> None:
        number, chunk = self.waiting.pop(which)
        job, kind, what = self.accepted[number]
        claim = claim_chunk(self.db, job.id, chunk, "w", 60.0)
        assert claim is not None
        collection = self.collection
        if kind == "filter":
            with self.db.write() as connection:
                head = begin_delete(connection, collection.id, job.accepted, what)
            for found, _ in matching_seqs(self.db, collection.id, parse_filter(what), 0, head):
                for seq in found.tolist():
                    with self.db.write() as connection:
                        delete_matching(connection, collection.id, [seq], job.accepted)

        def write(connection: Connection) -> ChunkResult:
            if kind != "filter":
                append_log(connection, collection.id, [change(kind, what[chunk], position_of(job.accepted, chunk))])
            return ChunkResult([{"index": chunk, "id": None}])

        finish_chunk(self.db, claim, write)

    def cancel(self, which: int) -> None:
        """What has not run of a job waits until somebody retries it."""
        number = self.waiting[which][0]
        cancel_job(self.db, self.accepted[number][0].id, OWNER)
        self.canceled[number] = [at for one, at in self.waiting if one == number]
        self.waiting = [one for one in self.waiting if one[0] != number]

    def retry(self) -> None:
        for number, chunks in self.canceled.items():
            retry_job(self.db, self.accepted[number][0].id, 3, OWNER)
            self.waiting += [(number, at) for at in chunks]
        self.canceled = {}

    def migrate(self, model: int) -> None:
        with self.db.write() as connection:
            serving = get_collection(connection, DEFAULT_TENANT, self.name)
            if serving.model_fingerprint == f"f{model % 2}":
                return
            shadow = begin_generation(connection, serving.id, "m", f"f{model % 2}", 2)
            at = shadow.shadow_seq or 0
            changes = changes_after(connection, serving.id, at, 10_000)
            entries = [LogEntry("delete", one) for one in changes.gone]
            entries += [
                LogEntry("upsert", row["item_id"], _VECTOR, metadata=row["metadata"], position=row["position"])
                for row in changes.live
            ]
            follow(connection, shadow, entries, at, changes.last_seq)
            swap(connection, *lock_heads(connection, shadow))

    def contents(self) -> dict[str, Any]:
        with self.db.read() as connection:
            return {row["item_id"]: row["metadata"]["n"] for row in list_items(connection, self.collection.id, 1_000)}

    def meant(self) -> dict[str, Any]:
        """What the jobs say one after the other."""
        held: dict[str, Any] = {}
        for _, kind, what in self.accepted:
            match kind:
                case "upsert":
                    held.update(what)
                case "delete":
                    held = {one: n for one, n in held.items() if one not in what}
                case _:
                    held = {one: n for one, n in held.items() if not matches(parse_filter(what), {"n": n})}
        return held


def change(kind: str, what: Any, position: int | None) -> LogEntry:
    if kind == "delete":
        return LogEntry("delete", what, position=position)
    item_id, n = what
    return LogEntry("upsert", item_id, _VECTOR, metadata={"n": n}, position=position)


def ledger(db: Database) -> Ledger:
    name = f"order-{next(_names)}-{uuid4().hex[:6]}"
    create_collection(db, OWNER, name, "m", "f0", 2, {})
    return Ledger(db, name)


def kept(db: Database, collection_id: str) -> int:
    with db.read() as connection:
        return sum(
            len(connection.execute(select(table).where(table.c.collection_id == collection_id)).all())
            for table in (tables.tombstones, tables.filter_deletes)
        )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(_steps, max_size=24))
def test_any_order_of_running_gives_what_the_order_of_acceptance_says(db: Database, steps: list[Any]) -> None:
    one = ledger(db)
    for step, what in steps:
        match step:
            case "accept":
                one.accept(*what)
            case "run" if one.waiting:
                one.run(what % len(one.waiting))
            case "cancel" if one.waiting:
                one.cancel(what % len(one.waiting))
            case "retry":
                one.retry()
            case "prune":
                prune_order(db, 1_000)
            case "migrate":
                one.migrate(what)
    one.retry()
    while one.waiting:
        one.run(-1)  # the last first
    assert one.contents() == one.meant(), steps
    assert one.collection.count == len(one.meant())
    while prune_order(db, 2):
        pass
    assert kept(db, one.collection.id) == 0, "nothing can come late any more"


OLD, NEW = ("upsert", [("x", 1)]), ("upsert", [("x", 2)])


@pytest.mark.parametrize(
    "later",
    [NEW, ("delete", ["x"]), ("filter", {"n": 1}), ("filter", {"n": 2})],
    ids=["upsert", "delete", "filter", "filter of others"],
)  # fmt: skip
def test_the_change_that_was_accepted_later_stands_though_it_ends_first(db: Database, later: tuple[str, Any]) -> None:
    for steps in ([OLD, later], [("upsert", [("x", 0)]), OLD, later], [OLD, later, NEW]):
        one = ledger(db)
        for job in steps:
            one.accept(*job)
        while one.waiting:
            one.run(-1)
        assert one.contents() == one.meant(), steps


def test_the_later_line_of_one_job_stands(db: Database) -> None:
    one = ledger(db)
    one.accept("upsert", [("x", at) for at in range(3)])
    for which in (2, 0, 0):
        one.run(which)
    assert one.contents() == {"x": 2}


def test_a_retry_does_not_bring_back_what_was_deleted_since(db: Database) -> None:
    one = ledger(db)
    one.accept(*OLD)
    one.cancel(0)
    one.accept("delete", ["x"])
    one.run(0)
    prune_order(db, 1_000)
    one.retry()
    one.run(0)
    assert one.contents() == {}


def test_nothing_is_kept_where_nothing_can_come_late(db: Database) -> None:
    one = ledger(db)
    for job in (OLD, ("delete", ["x"]), OLD, ("filter", {"n": 1})):
        one.accept(*job)
        one.run(0)
        assert kept(db, one.collection.id) == 0, job
    with db.read() as connection:
        job = get_job(connection, one.accepted[-1][0].id)
        assert job.accepted == one.accepted[0][0].accepted + 3
