"""Two installations on one Redis: beside each other under two prefixes, and told apart under one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from revln.broker import CANARY_TASK, Dispatcher, make_celery
from revln.db.engine import Database
from revln.db.installation import installation_id
from revln.db.migrate import upgrade
from revln.errors import SettingsError
from revln.installation import Installation
from revln.jobs.kinds import all_queues
from tests.builders import make_job
from tests.stack import DEADLINE_S, Stack, running
from worker.health.echo import Canary
from worker.main import _register, require_redis, run
from worker.models import loading
from worker.runtime import Runtime

SAYS = "Another installation of revln.*REVLN_REDIS_PREFIX is 'a:'.*give each its own REVLN_REDIS_PREFIX"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Stack, Stack]]:
    """Two databases and one Redis, under one prefix; nothing else runs."""
    with ExitStack() as opened:
        first = _stack(tmp_path / "1", redis_prefix="a:")
        opened.callback(first.stop)
        first.start_redis()
        second = _stack(tmp_path / "2", redis_prefix="a:", redis_url=first.settings.resolved_redis_url)
        opened.callback(second.stop)
        yield first, second


def _stack(folder: Path, **settings: Any) -> Stack:
    folder.mkdir()
    stack = Stack(folder, **settings)
    upgrade(stack.settings)
    return stack


@pytest.fixture
def databases(two: tuple[Stack, Stack]) -> Iterator[tuple[Database, Database]]:
    with ExitStack() as opened:
        yield tuple(opened.enter_context(closing(Database(one.settings.resolved_database_url))) for one in two)  # type: ignore[misc]


def test_all_processes_of_one_database_are_one_installation(database_url: str) -> None:
    with ThreadPoolExecutor(8) as threads, ExitStack() as opened:
        open_ones = [opened.enter_context(closing(Database(database_url))) for _ in range(8)]
        assert len({*threads.map(installation_id, open_ones), installation_id(open_ones[0])}) == 1


def test_a_prefix_is_one_installations_until_it_has_not_been_heard_of_for_a_minute(
    two: tuple[Stack, Stack], databases: tuple[Database, Database]
) -> None:
    first, second = (Installation(stack.settings, db) for stack, db in zip(two, databases, strict=True))
    redis, key = two[0].redis, "a:revln:installation"
    first.claim(redis)
    redis.expire(key, 5)
    first.claim(redis)
    assert 50 < redis.ttl(key) <= 60, "it was held for longer"
    redis.expire(key, 5)
    with pytest.raises(SettingsError, match=SAYS):
        second.claim(redis)
    assert redis.ttl(key) <= 5, "the other one did not hold it for us"
    redis.delete(key)
    second.claim(redis)
    with pytest.raises(SettingsError, match=SAYS):
        first.claim(redis)


def test_messages_are_not_published_to_another_installations_workers(
    two: tuple[Stack, Stack], databases: tuple[Database, Database]
) -> None:
    first, second = (Dispatcher(stack.settings, db) for stack, db in zip(two, databases, strict=True))
    with closing(first), closing(second):
        for db in databases:
            make_job(db, n_items=1)
        assert first.dispatch("embed.normal") == 1
        with pytest.raises(SettingsError, match=SAYS):
            second.dispatch("embed.normal")
        assert two[0].redis.llen("a:embed.normal") == 1
        two[0].redis.delete("a:revln:installation", "a:embed.normal")
        assert second.dispatch("embed.normal") == 1


def test_a_worker_does_not_start_on_another_installations_redis(
    two: tuple[Stack, Stack], databases: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.main.configure_logging", lambda _: None)
    Installation(two[0].settings, databases[0]).claim(two[0].redis)
    with pytest.raises(SettingsError, match=SAYS):
        run(two[1].settings)
    require_redis(two[0].settings)
    two[0].kill("redis")
    require_redis(two[1].settings)  # nobody knows yet


def test_a_worker_that_finds_another_installation_on_its_redis_ends_itself(
    two: tuple[Stack, Stack], databases: tuple[Database, Database]
) -> None:
    ended: list[bool] = []
    settings = two[1].settings
    other, own = (Installation(stack.settings, db) for stack, db in zip(two, databases, strict=True))
    canary = Canary(settings, "w@here", own, lambda: False, lambda: ended.append(True))
    canary._claim()
    assert not ended
    two[0].redis.delete("a:revln:installation")
    other.claim(two[0].redis)
    canary._claim()
    canary._claim()
    assert ended == [True], "once"
    canary._redis.close()


def test_a_worker_does_not_vouch_for_another_installation(
    two: tuple[Stack, Stack], databases: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "choose_device", lambda _: "cpu")  # the only thing for which torch would be imported
    monkeypatch.setattr("worker.models.pool.LoadedModels.prove", lambda *_: None)
    runtime = Runtime(two[0].settings, all_queues())
    app = make_celery(two[0].settings)
    _register(app, runtime)
    redis = two[0].redis
    own, other = map(installation_id, databases)
    # The last as an API of before asks.
    for nonce, well in ((f"{own}.1", True), (f"{other}.1", False), ("1", True)):
        app.tasks[CANARY_TASK](nonce)
        (_, said) = redis.blpop([f"a:revln:canary:{nonce}"], timeout=5)  # type: ignore[misc]
        assert said == "ok" if well else "give each its own REVLN_REDIS_PREFIX" in said
    runtime.stop()
    app.close()


def test_two_prefixes_beside_each_other_and_a_third_installation_under_one_of_them(tmp_path: Path) -> None:
    with ExitStack() as opened:
        (tmp_path / "a").mkdir()
        first = opened.enter_context(running(Stack(tmp_path / "a", redis_prefix="a:")))
        url = first.settings.resolved_redis_url
        second, third = (_stack(tmp_path / name, redis_prefix=f"{at}:", redis_url=url) for name, at in ("bb", "ca"))
        for stack in (second, third):
            opened.callback(stack.stop)
            stack.start_worker()
            stack.start_api()
        second.wait_ready()
        _works(first)
        _works(second)
        assert third.wait_end("worker") == 1
        assert third.log("worker").strip().splitlines()[-1].startswith("revln: Another installation of revln")
        answer = third.http.get("/readyz")
        assert (answer.status_code, answer.json()["database"]) == (503, "ok")
        assert "give each its own REVLN_REDIS_PREFIX" in answer.json()["redis"]
        assert answer.json()["worker"] != "ok", "the first one's worker does not answer for it"
        assert {key.partition(":")[0] for key in first.redis.keys("*")} == {"a", "b"}
        assert {str(name).partition(":")[0] for name in first.redis.pubsub_channels()} <= {"a", "b"}
        second.kill("worker")
        assert second.http.get("/readyz").json()["worker"].startswith("no worker answered")
        assert first.http.get("/readyz").json()["ready"]


def _works(stack: Stack) -> None:
    job = stack.client.submit("embed", {"items": [{"text": "a dog"}]}, wait_s=30)
    assert stack.client.wait(job["id"], DEADLINE_S)["status"] == "succeeded"
