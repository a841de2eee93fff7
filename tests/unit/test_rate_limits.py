"""A key that asks too often is told when to ask again, by whichever API process it asks."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from api.rates import Rates
from revln import embedded_redis
from revln.access import OWNER, Caller
from revln.errors import RateLimited
from revln.settings import Settings
from tests.stack import wait_until

WINDOW_S = 3_600  # so long that no slow machine lets one more through
ONE, OTHER = replace(OWNER, key_id="k1"), replace(OWNER, key_id="k2")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Settings, subprocess.Popen[bytes]]]:
    given = embedded_redis.prepare(tmp_path)
    process = subprocess.Popen(given.command, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: not embedded_redis.ping(given.url), what="Redis")
        yield Settings(redis_url=given.url, requests_per_s=5 / 3_600), process
    finally:
        process.kill()
        process.wait()


def let_through(settings: Settings, caller: Caller, *, processes: int = 1, times: int = 8) -> int:
    """Of so many requests to each process in turn."""

    async def ask() -> int:
        each = [Rates(settings, WINDOW_S) for _ in range(processes)]
        again_s: list[int] = []
        for _ in range(times):
            for rates in each:
                try:
                    await rates.check(caller)
                except RateLimited as err:
                    again_s.append(err.retry_after_s)
        for rates in each:
            await rates.close()
        assert set(again_s) <= set(range(1, 3_601))
        return times * processes - len(again_s)

    return asyncio.run(ask())


def test_all_processes_together_let_through_what_a_key_may(server: tuple[Settings, object]) -> None:
    settings, _ = server
    assert let_through(settings, ONE, processes=2) == 5, "five in a window"
    assert let_through(settings, OTHER) == 5, "another key"
    assert let_through(settings, replace(ONE, key_id="k3", requests_per_s=2 / 3_600)) == 2, "what the key's row says"
    assert let_through(settings, replace(ONE, tenant="other")) == 5


@pytest.mark.parametrize("sent", [signal.SIGSTOP, signal.SIGKILL])
def test_without_redis_each_process_counts_for_itself(
    server: tuple[Settings, subprocess.Popen[bytes]], sent: signal.Signals
) -> None:
    settings, process = server
    process.send_signal(sent)
    assert let_through(settings, ONE, processes=2) == 10


def test_without_a_limit_redis_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rates, "_count", None)
    assert let_through(Settings(), ONE) == 8
