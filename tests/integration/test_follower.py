"""A worker that holds a collection's index hears of changes, and needs no Redis to find them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from revln import embedded_redis
from revln.broker import Dispatcher
from revln.embedded_redis import EmbeddedRedis
from tests.collections import read
from tests.conftest import DATABASES, fresh_database
from tests.inline import InlineStack, inline_stack
from tests.integration.test_search_over_http import AHEAD, ids, own, ring, run
from tests.stack import wait_until
from worker.index.cache import IndexCache
from worker.index.follower import Follower


@contextmanager
def serving(redis: EmbeddedRedis) -> Iterator[None]:
    """A Redis to which the follower has found its way."""
    process = subprocess.Popen(redis.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: not embedded_redis.ping(redis.url), what="Redis")
        with Redis.from_url(redis.url.replace("redis+socket", "unix"), decode_responses=True) as client:
            wait_until(lambda: client.pubsub_numsub("revln:collections")[0][1], what="who listens")
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", DATABASES)
def test_an_idle_worker_catches_up_when_a_change_is_called_out(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    redis = embedded_redis.prepare(tmp_path)
    with fresh_database(kind, tmp_path, request) as url, inline_stack(url, tmp_path, redis_url=redis.url) as stack:
        runtime = stack.runtime
        runtime.dispatcher.close()
        # What is called out before Redis answers would silence the next.
        runtime.dispatcher = Dispatcher(stack.settings, runtime.db, quiet_s=0.0)
        other = IndexCache(runtime.db, runtime.blobs)  # of a worker that is not asked again
        follower = Follower(stack.settings, runtime.db, other, reconnect_s=0.05)
        searched, unknown = own(stack, *ring(5)), own(stack, *ring(5))
        index = other.caught_up(read(runtime.db, searched))
        follower.start()
        with serving(redis):
            seq = change(stack, searched)
            wait_until(lambda: index.seq >= seq, what="hearing of a change")
            change(stack, unknown)
        assert change(stack, searched) > index.seq
        assert ids(stack, searched, AHEAD, k=1) == ["i0"]  # who searches looks for himself
        with serving(redis):
            seq = change(stack, searched)
            wait_until(lambda: index.seq >= seq, what="hearing again")
        assert not other.holds({read(runtime.db, unknown).id})
        follower.stop()
        other.close()


def change(stack: InlineStack, name: str) -> int:
    """Write an item; its row of the log."""
    job = run(stack, "index", {"collection": name, "items": [{"id": "new", "vector": [0, 0, 1, 0]}]})
    seq: int = job["result"]["items"][0]["seq"]
    return seq
