"""Pictures have a few threads of their own, of which no tenant has all; everything else goes on beside them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from threading import Event
from typing import Any

import httpx
import pytest

from api import keyring
from api.app import create_app
from api.pool import SlowWork
from api.routes import images
from api.thumbnails import ThumbnailCache
from revln.db.migrate import upgrade
from revln.errors import Unavailable
from revln.settings import Settings
from tests import pictures
from tests.stack import DEADLINE_S


def running(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await test()

    asyncio.run(bounded())


def test_a_tenant_may_have_all_threads_but_one_and_the_rest_of_it_waits_or_is_refused() -> None:
    async def test() -> None:
        pool, go, started = SlowWork("pictures", threads=3, waiting=4), Event(), Counter[str]()

        def work(tenant: str) -> str:
            started[tenant] += 1
            assert go.wait(DEADLINE_S)
            return tenant

        greedy = [asyncio.create_task(pool.run("greedy", lambda: work("greedy"))) for _ in range(6)]
        while started["greedy"] < 2:
            await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="6 pictures of yours"):
            await pool.run("greedy", lambda: work("greedy"))
        assert await pool.run("other", lambda: "at once") == "at once"
        assert started == {"greedy": 2}
        go.set()
        assert await asyncio.gather(*greedy) == ["greedy"] * 6
        assert await pool.run("greedy", lambda: "again") == "again"

    running(test)


def test_what_fails_or_is_given_up_leaves_its_place() -> None:
    async def test() -> None:
        pool, go = SlowWork("pictures", threads=1, waiting=1), Event()
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                await pool.run("a", lambda: 1 // 0)
        first = asyncio.create_task(pool.run("a", lambda: go.wait(DEADLINE_S)))
        waiting = asyncio.create_task(pool.run("a", lambda: True))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        second = asyncio.create_task(pool.run("a", lambda: True))
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(first, second) == [True, True]

    running(test)


def test_thumbnails_are_kept_up_to_a_number_of_bytes_each_tenants_for_itself() -> None:
    cache = ThumbnailCache(most_bytes=100)
    cache.put(("a", "x", 16), b"1" * 40)
    cache.put(("a", "y", 16), b"2" * 40)
    assert cache.get(("a", "x", 16)) == b"1" * 40
    assert cache.get(("b", "x", 16)) is cache.get(("a", "x", 17)) is None
    cache.put(("a", "z", 16), b"3" * 40)
    assert cache.get(("a", "y", 16)) is None, "used longest ago"
    assert cache.get(("a", "x", 16)) is not None
    cache.put(("a", "w", 16), b"4" * 101)
    assert all(cache.get(("a", name, 16)) is None for name in "xyzw")
    cache.put(("a", "x", 16), b"5" * 100)
    assert cache.get(("a", "x", 16)) == b"5" * 100


def test_while_every_picture_thread_and_every_route_thread_is_taken_health_and_keys_answer(
    tmp_path, monkeypatch
) -> None:
    settings = Settings(data_dir=tmp_path, api_threads=2, api_key="k", redis_url="redis://127.0.0.1:1/0")
    upgrade(settings)
    go, asked = Event(), []
    real = images.thumbnail

    def slow(*args: Any) -> bytes:
        asked.append(args)
        assert go.wait(DEADLINE_S)
        return real(*args)

    monkeypatch.setattr(images, "thumbnail", slow)

    async def test() -> None:
        app = create_app(settings)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", headers={"Authorization": "Bearer k"}
            ) as http,
        ):
            state = app.state.revln
            made = await http.post("/v1/keys", json={"tenant": "other", "scopes": ["read", "submit"], "name": "o"})
            other = {"Authorization": f"Bearer {made.json()['key']}"}
            sha256 = (await http.post("/v1/images", content=pictures.png(640, 480))).json()["sha256"]
            url = f"/v1/images/{sha256}"
            mine = [asyncio.create_task(http.get(url, params={"width": 16 + n})) for n in range(200)]
            while len(asked) < settings.cores:
                await asyncio.sleep(0)
            # Thumbnails leave the routes' threads free, and one of their own.
            assert (await http.get("/v1/jobs", headers=other)).status_code == 200
            assert (await http.post("/v1/images", content=pictures.png(), headers=other)).status_code == 201
            # And what takes those, whatever it is, leaves health and keys.
            full = [asyncio.create_task(keyring.run_sync(go.wait, DEADLINE_S)) for _ in range(settings.api_threads)]
            await asyncio.sleep(0)
            state.keys._known.clear()
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/v1/jobs", headers={"Authorization": "Bearer rvl_no"})).status_code == 401
            assert (await state.keys.caller(other["Authorization"])).tenant == "other"
            go.set()
            answers = Counter(answer.status_code for answer in await asyncio.gather(*mine))
            await asyncio.gather(*full)
            assert answers == {200: settings.cores + 64, 503: 200 - settings.cores - 64}
            refused = next(task.result() for task in mine if task.result().status_code == 503)
            assert int(refused.headers["Retry-After"]) >= 1
            before = len(asked)
            assert (await http.get(url, params={"width": 16})).status_code == 200
            assert len(asked) == before, "kept"

    running(test)
