"""Items whose errors may pass are run again; a chunk that kills is cut into single items. What is done stays done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import update

from revln.access import OWNER
from revln.blobs import BlobStore
from revln.db import tables
from revln.db.engine import Database
from revln.db.jobs import changes as job_changes
from revln.db.jobs import sweep
from revln.db.jobs.chunks import ChunkResult, Claim, end_chunk, finish_chunk
from revln.db.jobs.dead_letters import bury_chunk
from revln.db.jobs.lists import list_chunks
from revln.db.jobs.read import Job, events_after, get_job
from revln.db.jobs.results import result_items, vectors_from_bytes, vectors_to_bytes
from revln.db.jobs.submit import NewChunk, Range
from revln.errors import FetchError, ImageError, WorkerLost
from revln.jobs.state import ChunkState, JobStatus
from revln.settings import Settings
from tests.builders import let_backoffs_end, let_leases_run_out, make_job, take
from worker.context import Context, Outcome
from worker.endings import retry_items_in_s
from worker.execute import _merged
from worker.leases import Lease


def read(db: Database, job: Job) -> Job:
    with db.read() as connection:
        return get_job(connection, job.id)


def context(db: Database, claim: Claim, **parts: Any) -> Context:
    runtime = SimpleNamespace(db=db, settings=Settings(), **parts)
    return Context(runtime, Lease(claim, 60))  # type: ignore[arg-type]


def run(db: Database, claim: Claim, errors: dict[int, Any], retry_in_s: float | None = 30.0) -> list[int]:
    """Run what is to be done, with these errors by index; a vector of an item is its index. What was run."""
    todo = [one.index for one in context(db, claim).todo]
    outcomes = [
        Outcome(index, error=errors[index])
        if index in errors
        else Outcome(index, vector=np.float32([index, claim.attempt]))
        for index in todo
    ]
    finish_chunk(db, claim, lambda _: _merged(claim, outcomes), retry_in_s)
    return todo


def again(db: Database, job: Job, number: int = 0) -> Claim:
    let_backoffs_end(db)
    return take(db, job, number)


def found(db: Database, job: Job) -> dict[int, Any]:
    """Each item's error code, or the attempt that its vector came from."""
    with db.read() as connection:
        items = result_items(connection, job.id, 0, 100)
    return {item["index"]: item["error"]["code"] if "error" in item else int(vector[1]) for item, vector in items}


def test_items_whose_errors_may_pass_are_run_again_and_the_others_are_not(db: Database) -> None:
    job = make_job(db, n_items=4, chunk_items=4)
    assert run(db, take(db, job), {1: FetchError(), 2: ImageError()}) == [0, 1, 2, 3]
    between = read(db, job)
    assert (between.status, between.succeeded, between.failed) == (JobStatus.QUEUED, 2, 1)
    assert found(db, job) == {0: 1, 2: "invalid_image", 3: 1}, "what is not final is not shown"
    assert run(db, again(db, job), {}) == [1], "bad input is not tried again"
    done = read(db, job)
    assert (done.status, done.succeeded, done.failed) == (JobStatus.SUCCEEDED, 3, 1)
    assert found(db, job) == {0: 1, 1: 2, 2: "invalid_image", 3: 1}
    with db.read() as connection:
        (told,) = [one["data"] for one in events_after(connection, job.id, 0) if one["type"] == "chunk.retried"]
    assert (told["items"], told["attempt"], told["retry_in_s"], told["error"]["code"]) == (1, 1, 30.0, "fetch_failed")


def test_an_error_that_does_not_pass_stands_in_the_end_and_may_be_retried_by_the_user(db: Database) -> None:
    job = make_job(db, n_items=2, chunk_items=2)
    run(db, take(db, job), {0: FetchError(), 1: ImageError()})
    run(db, again(db, job), {0: FetchError()}, retry_in_s=None)
    ended = read(db, job)
    assert (ended.status, ended.failed, found(db, job)) == (
        JobStatus.FAILED,
        2,
        {0: "fetch_failed", 1: "invalid_image"},
    )
    job_changes.retry_job(db, job.id, 5, OWNER)
    assert run(db, again(db, job), {1: ImageError()}) == [0, 1], "who asks for it gets everything tried again"
    done = read(db, job)
    assert (done.status, done.succeeded, done.failed) == (JobStatus.SUCCEEDED, 1, 1)


@pytest.mark.parametrize("end", ["dead", "canceled", "expired"])
def test_a_chunk_that_was_done_in_part_and_then_ended_counts_each_item_once(db: Database, end: str) -> None:
    job = make_job(db, n_items=3, chunk_items=3)
    run(db, take(db, job), {1: FetchError(), 2: ImageError()})
    claim = again(db, job)
    if end == "dead":
        bury_chunk(db, claim, WorkerLost().as_dict())
    else:
        end_chunk(db, claim, ChunkState(end))
    ended = read(db, job)
    assert ended.succeeded == 1
    assert ended.failed == (2 if end == "dead" else 1)
    assert found(db, job) == {0: 1, **({1: "worker_lost"} if end == "dead" else {}), 2: "invalid_image"}


def test_items_are_tried_three_times_in_all(db: Database) -> None:
    job = make_job(db, n_items=1)
    pauses = []
    for _ in range(3):
        claim = again(db, job)
        pauses.append(retry_items_in_s(claim))
        run(db, claim, {0: FetchError()}, pauses[-1])
    assert [pause is None for pause in pauses] == [False, False, True]
    assert read(db, job).status is JobStatus.FAILED


def crash(db: Database, job: Job, number: int = 0) -> None:
    take(db, job, number)
    let_leases_run_out(db)
    sweep.recover_lost_chunks(db, 3)


def test_of_eight_items_in_a_chunk_only_the_one_that_kills_becomes_a_dead_letter(db: Database) -> None:
    job, killer = make_job(db, n_items=8, chunk_items=8), 5
    crash(db, job)
    assert not context(db, take(db, job)).split(), "the first death may have been a neighbour's"
    let_leases_run_out(db)
    sweep.recover_lost_chunks(db, 3)
    claim = take(db, job)
    assert context(db, claim).split()
    with pytest.raises(Exception, match="no longer ours"):
        run(db, claim, {})
    with db.read() as connection:
        chunks = list_chunks(connection, job.id, 100)
    assert [(one.number, one.first_index, one.n_items, one.state) for one in chunks] == [
        (at, at, 1, "queued") for at in range(8)
    ]
    for number in range(8):
        if number == killer:
            crash(db, job, number)
        else:
            run(db, take(db, job, number), {})
    ended = read(db, job)
    assert (ended.status, ended.succeeded, ended.failed) == (JobStatus.SUCCEEDED, 7, 1)
    assert (ended.chunks_succeeded, ended.chunks_dead) == (7, 1)
    assert found(db, job)[killer] == "worker_lost"
    assert set(found(db, job)) == set(range(8))


def test_what_was_done_before_a_split_stays_done(db: Database) -> None:
    job = make_job(db, n_items=4, chunk_items=2)
    run(db, take(db, job, 1), {3: FetchError()})
    with db.write() as connection:
        connection.execute(update(tables.chunks).values(crash_count=2))
    claim = again(db, job, 1)
    assert context(db, claim).split()
    assert found(db, job) == {2: 1}
    with db.read() as connection:
        chunks = list_chunks(connection, job.id, 100)
    assert [(one.number, one.first_index, one.state) for one in chunks] == [
        (0, 0, "queued"), (1, 2, "succeeded"), (2, 3, "queued"),
    ]  # fmt: skip
    run(db, take(db, job, 2), {})
    run(db, take(db, job, 0), {})
    done = read(db, job)
    assert (done.status, done.succeeded, done.chunks_succeeded) == (JobStatus.SUCCEEDED, 4, 3)


def test_a_manifests_chunk_is_cut_line_by_line(db: Database, tmp_path: Any) -> None:
    lines = [b'{"text": "a"}', b"", b'  {"text": "\xc3\xa9"}', b'{"text": "c"}']
    blobs = BlobStore(f"file://{tmp_path}/blobs")
    head = b'{"text": "before"}\n'
    manifest = blobs.put(head + b"\n".join(lines) + b"\n", "manifests")
    source = NewChunk(1, 3, Range(len(head), len(b"\n".join(lines)) + 1))
    job = make_job(db, total=3, chunks=[source], input={"manifest": {"sha256": manifest}})
    with db.write() as connection:
        connection.execute(update(tables.chunks).values(crash_count=2))
    parts = {"blobs": blobs, "uploads": SimpleNamespace(of=lambda *_: [manifest])}
    claim = take(db, job)
    before = [one.raw for one in context(db, claim, **parts).todo]
    assert context(db, claim, **parts).split()
    after = [context(db, take(db, job, number), **parts).todo for number in range(3)]
    assert [[(one.index, one.raw) for one in todo] for todo in after] == [[(1 + at, before[at])] for at in range(3)]


def test_results_of_parts_keep_each_items_vector() -> None:
    previous = [{"index": 0}, {"index": 1, "error": {}}, {"index": 2}]
    claim = SimpleNamespace(previous=previous, previous_vectors=vectors_to_bytes(np.float32([[0, 1], [2, 1]])))
    merged = _merged(claim, [Outcome(3, vector=np.float32([3, 2]))])  # type: ignore[arg-type]
    assert isinstance(merged, ChunkResult)
    assert [item["index"] for item in merged.items] == [0, 1, 2, 3]
    assert merged.vectors is not None
    assert vectors_from_bytes(merged.vectors, 3)[:, 0].tolist() == [0, 2, 3]
