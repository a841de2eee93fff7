"""A worker that does not hear its own messages is found out: by itself, in its row, and by /readyz."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from revln.broker import make_celery
from revln.db.engine import Database
from revln.db.workers import list_workers
from revln.installation import Installation
from tests.chaos.lab import LabStack
from tests.chaos.zygote import Zygote
from tests.stack import Stack, running, wait_until
from worker.health.echo import Canary


@pytest.fixture
def redis_only(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path, deaf_s=5.0)
    stack.start_redis()
    yield stack
    stack.stop()


def test_the_canary_lies_in_redis_until_it_is_heard_and_leaves_nothing_there(redis_only: Stack) -> None:
    queue, busy = "echo.worker-1@here", False
    installation = Installation(redis_only.settings, Database(redis_only.settings.resolved_database_url))
    canary = Canary(redis_only.settings, "worker-1@here", installation, lambda: busy, lambda: None)
    assert not canary.look()
    assert not canary.look()
    assert redis_only.redis.llen(queue) == 1, "one message at a time"
    assert 0 < redis_only.redis.ttl(queue) <= 120, "a worker that dies leaves nothing behind"
    assert redis_only.redis.keys() == [queue], "nor a binding of its queue"
    canary._well_at -= 6
    assert canary.look(), "it was not heard for longer than REVLN_DEAF_S"
    canary.heard()
    assert not canary.look()
    canary._well_at -= 6
    busy = True
    assert not canary.look(), "with every thread busy, Celery fetches nothing"
    busy = False
    redis_only.redis.flushall()
    canary.look()
    assert redis_only.redis.llen(queue) == 1, "one that was lost is sent again"
    canary._well_at -= 6
    redis_only.kill("redis")
    assert not canary.look(), "nobody hears through a Redis that is away"
    assert canary.silent_s < 5
    canary.stop()


def test_a_worker_whose_consumer_is_deaf_is_seen_and_ends_itself(tmp_path: Path) -> None:
    zygote = Zygote()
    try:
        with running(LabStack(tmp_path / "stack", zygote, quick=True, deaf_s=3.0)) as stack:
            _end_of_a_deaf_worker(stack)
    finally:
        zygote.close()


def _end_of_a_deaf_worker(stack: Stack) -> None:
    with closing(Database(stack.settings.resolved_database_url)) as db:

        def workers() -> dict[str, str]:
            with db.read() as connection:
                return {row["id"]: row["trouble"] for row in list_workers(connection)}

        ((name, trouble),) = wait_until(workers, what="its row").items()
        assert trouble == ""
        heard = stack.http.get("/readyz").json()
        assert (heard["ready"], heard["workers"]) == (True, [{"id": name, "state": "hears"}])
        control = make_celery(stack.settings).control
        control.cancel_consumer(f"echo.{name}", destination=[name])
        wait_until(lambda: stack.ended("worker"), what="the end of the deaf worker")
        assert stack.kill("worker") == 75
        assert "has not heard its own messages" in stack.log("worker")
        stack.start_worker()
        stack.wait_ready()
        assert name not in workers(), "it has said goodbye"
