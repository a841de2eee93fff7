"""Whatever dies, an accepted job ends, once, with a result for every item."""

from __future__ import annotations

import io
import itertools
import signal
import sqlite3
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import func, select
from sqlalchemy.engine import make_url

from revln.blobs import BlobStore
from revln.db import tables
from revln.db.engine import Database
from tests.stack import Stack, wait_until

pytestmark = pytest.mark.slow

_SEEDS = itertools.count()


@pytest.fixture
def own_stack(breakable_stack: Stack) -> Stack:
    """Whole again, whatever the test before did to it."""
    breakable_stack.heal()
    return breakable_stack


def pictures(stack: Stack, count: int) -> list[dict[str, Any]]:
    """Items of small pictures that no test had before (known ones would be done at once), in the blob store."""
    blobs = BlobStore(stack.settings.resolved_blob_url)
    random = np.random.default_rng(next(_SEEDS))
    items = []
    for n in range(count):
        out = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(out, "JPEG")
        items.append({"id": f"p{n}", "image": {"sha256": blobs.put(out.getvalue(), "images")}})
    return items


def submit(stack: Stack, kind: str, body: dict[str, Any], **more: Any) -> str:
    answer = stack.http.post("/v1/jobs", json={"kind": kind, "input": body, **more})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def job(stack: Stack, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = stack.http.get(f"/v1/jobs/{job_id}").json()
    return found


def wait_done(stack: Stack, job_id: str, deadline_s: float = 90) -> dict[str, Any]:
    """The job once it has ended. A worker that exits is started again, as every supervisor does."""

    def look() -> dict[str, Any] | None:
        stack.revive("worker")
        found = job(stack, job_id)
        return found if found["done"] else None

    done: dict[str, Any] = wait_until(look, deadline_s, f"the end of {job_id}")
    return done


def wait_for_part(stack: Stack, job_id: str, least: int = 1) -> None:
    """Until some of the job is done, and not all of it."""
    wait_until(lambda: job(stack, job_id)["counts"]["succeeded"] >= least, what="the first results")


def freeze_worker(stack: Stack) -> None:
    """Freeze it between two transactions: frozen inside one, it would hold SQLite's only write lock as long as it lives
    (PostgreSQL ends such a transaction after 15 s)."""
    url = make_url(stack.settings.resolved_database_url)

    def frozen_outside() -> bool:
        stack.send("worker", signal.SIGSTOP)
        if url.get_backend_name() != "sqlite":
            return True
        try:
            with closing(sqlite3.connect(str(url.database), timeout=0.5, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
            return True
        except sqlite3.OperationalError:
            stack.send("worker", signal.SIGCONT)
            return False

    wait_until(frozen_outside, what="a moment without a transaction")


def check_invariants(stack: Stack) -> None:
    """Every accepted job has ended; one result a chunk, of its last attempt; no lease on what has ended."""
    db = Database(stack.settings.resolved_database_url)
    try:
        with db.read() as connection:
            jobs, chunks, results = tables.jobs.c, tables.chunks.c, tables.results.c
            opened = connection.scalar(select(func.count()).where(jobs.status.in_(["queued", "running"])))
            assert opened == 0
            rows = connection.execute(
                select(chunks.job_id, chunks.number, chunks.n_items, chunks.attempt, results.attempt, results["items"])
                .join(tables.results, (results.job_id == chunks.job_id) & (results.number == chunks.number))
                .where(chunks.state == "succeeded")
            ).all()
            assert len(rows) == connection.scalar(select(func.count()).where(chunks.state == "succeeded"))
            for _, _, n_items, attempt, written_by, items in rows:
                assert attempt == written_by
                assert len(items) == n_items
            for row in connection.execute(select(tables.jobs)):
                mine = [len(items) for job_id, *_, items in rows if job_id == row.id]
                assert row.succeeded + row.failed == sum(mine)
    finally:
        db.close()


def check_complete(stack: Stack, job_id: str, count: int) -> None:
    done = wait_done(stack, job_id)
    assert (done["status"], done["counts"]) == ("succeeded", {"total": count, "succeeded": count, "failed": 0})
    items = stack.http.get(f"/v1/jobs/{job_id}/result", params={"limit": 10_000}).json()["items"]
    assert [item["index"] for item in items] == list(range(count))
    assert all(len(item["embedding"]) == 32 for item in items)
    check_invariants(stack)


def test_a_job_whose_worker_is_killed_again_and_again_finishes_with_every_result(own_stack: Stack) -> None:
    job_id = submit(own_stack, "embed", {"items": pictures(own_stack, 500)})
    for round_ in range(3):  # as often as max_crashes: no chunk may be buried for a death that was not its own
        wait_for_part(own_stack, job_id, 1 + 64 * round_)
        own_stack.kill("worker")
        own_stack.start_worker()
    check_complete(own_stack, job_id, 500)


def test_a_job_survives_the_loss_of_everything_in_redis(own_stack: Stack) -> None:
    job_id = submit(own_stack, "embed", {"items": pictures(own_stack, 500)})
    wait_for_part(own_stack, job_id)
    own_stack.redis.flushall()
    waiting = [submit(own_stack, "embed", {"items": [{"text": f"after the flush {n}"}]}) for n in range(20)]
    own_stack.redis.flushall()
    for other in waiting:
        assert wait_done(own_stack, other)["status"] == "succeeded"
    check_complete(own_stack, job_id, 500)


def test_jobs_are_accepted_while_redis_is_down_and_run_when_it_is_back(own_stack: Stack) -> None:
    own_stack.kill("redis")
    ids = [submit(own_stack, "embed", {"items": [{"text": f"no redis {n}"}]}) for n in range(20)]
    own_stack.start_redis()
    for job_id in ids:
        assert wait_done(own_stack, job_id)["status"] == "succeeded"
    check_invariants(own_stack)


def test_a_worker_that_is_asked_to_stop_finishes_or_hands_back_and_exits_cleanly(own_stack: Stack) -> None:
    items = pictures(own_stack, 96)
    slow = {"items": items, "num_beams": 16, "max_new_tokens": 64, "num_captions": 16}
    job_id = submit(own_stack, "caption", slow)
    wait_until(lambda: job(own_stack, job_id)["status"] == "running", what="the start")
    assert own_stack.kill("worker", signal.SIGTERM) == 0
    own_stack.start_worker()
    done = wait_done(own_stack, job_id, 150)
    assert done["counts"] == {"total": 96, "succeeded": 96, "failed": 0}
    check_invariants(own_stack)


def test_a_worker_frozen_past_its_lease_cannot_write_over_its_successor(own_stack: Stack) -> None:
    job_id = submit(own_stack, "embed", {"items": pictures(own_stack, 300)})
    wait_for_part(own_stack, job_id)
    freeze_worker(own_stack)
    own_stack.start_worker("second")
    check_complete(own_stack, job_id, 300)
    events = own_stack.http.get(f"/v1/jobs/{job_id}").headers["etag"]
    own_stack.send("worker", signal.SIGCONT)
    # The first one is back once it has answered a job of its own; only then has it tried its late writes.
    own_stack.kill("second", signal.SIGTERM)
    other = submit(own_stack, "embed", {"items": [{"text": "are you back"}]})
    assert wait_done(own_stack, other)["status"] == "succeeded"
    assert own_stack.http.get(f"/v1/jobs/{job_id}").headers["etag"] == events, "nothing was written after the end"
    check_complete(own_stack, job_id, 300)


def test_a_running_job_stops_soon_after_it_is_canceled_and_keeps_what_was_done(own_stack: Stack) -> None:
    items = pictures(own_stack, 400)
    slow = {"items": items, "num_beams": 16, "max_new_tokens": 64, "num_captions": 16}
    job_id = submit(own_stack, "caption", slow)
    wait_for_part(own_stack, job_id)
    own_stack.http.post(f"/v1/jobs/{job_id}/cancel")
    done = wait_done(own_stack, job_id)
    assert done["status"] == "canceled"
    assert 0 < done["counts"]["succeeded"] < 400
    kept = own_stack.http.get(f"/v1/jobs/{job_id}/result").json()["items"]
    assert sum("captions" in item for item in kept) == done["counts"]["succeeded"]
    again = own_stack.http.post(f"/v1/jobs/{job_id}/retry")
    assert again.status_code == 202
    own_stack.http.post(f"/v1/jobs/{job_id}/cancel")
    wait_done(own_stack, job_id)


def test_a_job_past_its_deadline_expires_while_it_runs(own_stack: Stack) -> None:
    slow = {"items": pictures(own_stack, 400), "num_beams": 16, "max_new_tokens": 64, "num_captions": 16}
    job_id = submit(own_stack, "caption", slow, deadline_s=2.0)
    done = wait_done(own_stack, job_id)
    assert (done["status"], done["error"]["code"]) == ("expired", "deadline_exceeded")
