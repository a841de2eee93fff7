"""The embedded Redis-protocol server: where it listens, what it promises, what it survives."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from revln import embedded_redis
from revln.embedded_redis import EmbeddedRedis
from revln.errors import StartupError
from tests.stack import wait_until


@contextmanager
def server(given: EmbeddedRedis) -> Iterator[redis.Redis]:
    process = subprocess.Popen(given.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: not embedded_redis.ping(given.url), 20, "Redis")
        url = given.url.replace("redis+socket://", "unix://")
        with redis.Redis.from_url(url, decode_responses=True) as client:
            yield client
    finally:
        process.kill()
        process.wait()


def test_it_listens_on_a_socket_that_only_we_can_open_and_forgets_nothing(tmp_path: Path) -> None:
    given = embedded_redis.prepare(tmp_path / "a 'b'")
    with server(given) as client:
        assert (tmp_path / "a 'b'" / "redis.sock").stat().st_mode & 0o777 == 0o700
        config = client.config_get("*")
        assert (config["port"], config["appendonly"], config["appendfsync"]) == ("0", "yes", "everysec")
        assert (config["maxmemory-policy"], config["save"]) == ("noeviction", "")


def test_a_folder_with_a_long_path_gets_a_loopback_port_behind_a_password(tmp_path: Path) -> None:
    given = embedded_redis.prepare(tmp_path / ("long" * 30))
    assert given.url.startswith("redis://:")
    assert (given.folder / "redis.conf").stat().st_mode & 0o777 == 0o600
    with server(given) as client:
        host, port = client.connection_pool.connection_kwargs["host"], client.connection_pool.connection_kwargs["port"]
        with redis.Redis(host, port, retry=Retry(NoBackoff(), 0)) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_what_was_queued_is_there_after_kill_9(tmp_path: Path) -> None:
    with server(embedded_redis.prepare(tmp_path)) as client:
        client.lpush("queue", "one")
        wait_until(lambda: "one" in "".join(_appended(tmp_path)), 10, "the append-only file")
    with server(embedded_redis.prepare(tmp_path)) as client:
        assert client.lrange("queue", 0, -1) == ["one"]


def _appended(folder: Path) -> list[str]:
    return [path.read_text(errors="replace") for path in folder.glob("redis/*/appendonlydir/*") if path.is_file()]


def test_servers_of_different_kinds_and_versions_do_not_share_a_folder(tmp_path: Path) -> None:
    fake = tmp_path / "redis-server"
    fake.write_text("#!/bin/sh\necho 'Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64'\n")
    fake.chmod(0o755)
    assert embedded_redis.prepare(tmp_path, fake).folder.name == "redis-7"


def test_the_systems_server_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "valkey-server"
    system.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded_redis.find_server() == system


def test_no_server_at_all_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("revln.embedded_redis.importlib.import_module", lambda _name: 1 / 0)
    with pytest.raises(StartupError, match="apt install redis-server"):
        embedded_redis.find_server()


def test_a_server_that_does_not_run_here_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(StartupError, match="does not run on this machine"):
        embedded_redis.prepare(tmp_path, broken)


def test_ping_says_why_nobody_answers(tmp_path: Path) -> None:
    assert "No such file" in embedded_redis.ping(f"redis+socket://{tmp_path}/nothing.sock")
