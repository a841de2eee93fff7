"""rediss:// means what it says: nothing is sent to a server whose certificate is not trusted, by any client of ours."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from flower.utils.broker import Broker

from revln import embedded_redis
from revln.broker import make_celery
from revln.errors import SettingsError
from revln.redis_clients import connect_redis, connect_redis_async, redis_pool_async
from revln.settings import Settings
from tests.stack import wait_until
from tests.tls_front import tls_front

PASSWORD = "redis-pa55word"


async def _asynchronous(settings: Settings) -> Any:
    async with connect_redis_async(settings, socket_timeout=2) as client:
        return await client.ping()


async def _pooled(settings: Settings) -> Any:
    import redis.asyncio

    pool = redis_pool_async(settings, socket_timeout=2)
    try:
        return await redis.asyncio.Redis(connection_pool=pool).ping()
    finally:
        await pool.aclose()


def _plain(settings: Settings) -> Any:
    with connect_redis(settings) as client:
        return client.ping()


def _published(settings: Settings) -> Any:
    with make_celery(settings, publisher=True) as app:
        app.send_task("revln.canary", queue="canary", retry=False)
        return True


def _consumed(settings: Settings) -> Any:
    """As a worker: kombu makes this connection apart from those that publish."""
    with make_celery(settings) as app, app.connection_for_read() as connection:
        pool = connection.channel().async_pool
        try:
            held = pool.get_connection()
            held.disconnect()
        finally:
            pool.disconnect()
        return True


def _flower(settings: Settings) -> Any:
    with make_celery(settings) as app:
        broker = Broker(
            app.connection().as_uri(include_password=True),
            broker_options=app.conf.broker_transport_options,
            broker_use_ssl=app.conf.broker_use_ssl,
        )
        return asyncio.run(broker.queues(["embed.bulk"]))


CLIENTS: dict[str, Callable[[Settings], Any]] = {
    "redis-py": _plain,
    "redis-py, asynchronous": lambda settings: asyncio.run(_asynchronous(settings)),
    "the pool of the rate limits": lambda settings: asyncio.run(_pooled(settings)),
    "kombu, publishing": _published,
    "kombu, consuming": _consumed,
    "Flower": _flower,
}


@pytest.fixture(scope="module")
def ours() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def redis_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    given = embedded_redis.prepare(tmp_path_factory.mktemp("redis"))
    process = subprocess.Popen(
        [*given.command, "--requirepass", PASSWORD], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        path = given.folder.parents[1] / "redis.sock"
        wait_until(path.exists, 20, "Redis")
        yield path
    finally:
        process.kill()
        process.wait()


def _settings(port: int, ca: trustme.CA, folder: Path, host: str = "127.0.0.1") -> Settings:
    file = folder / "ca.pem"
    ca.cert_pem.write_to_path(file)
    return Settings(data_dir=folder, redis_url=f"rediss://:{PASSWORD}@{host}:{port}/0", redis_ca_file=str(file))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_trusted_certificate_is_taken(client: str, ours: trustme.CA, redis_socket: Path, tmp_path: Path) -> None:
    with tls_front(ours.issue_cert("127.0.0.1"), redis_socket) as front:
        assert CLIENTS[client](_settings(front.port, ours, tmp_path))
        assert PASSWORD.encode() in b"".join(front.received)


@pytest.mark.parametrize("name", ["of another CA", "of another host"])
@pytest.mark.parametrize("client", CLIENTS)
def test_a_certificate_that_is_not_trusted_is_told_nothing(
    client: str, name: str, ours: trustme.CA, tmp_path: Path
) -> None:
    wrong = trustme.CA().issue_cert("127.0.0.1") if name == "of another CA" else ours.issue_cert("redis.example.org")
    with tls_front(wrong) as front:
        with pytest.raises(Exception, match=r"(?i)certificate"):
            CLIENTS[client](_settings(front.port, ours, tmp_path))
        wait_until(lambda: front.handshakes_failed, what="the front, which sees the failure after the client does")
        assert front.received == []


def test_without_a_ca_of_ones_own_the_systems_are_asked(ours: trustme.CA, tmp_path: Path) -> None:
    with tls_front(ours.issue_cert("127.0.0.1")) as front:
        settings = Settings(data_dir=tmp_path, redis_url=f"rediss://:{PASSWORD}@127.0.0.1:{front.port}/0")
        with pytest.raises(Exception, match=r"(?i)certificate"):
            _published(settings)
        assert front.received == []


@pytest.mark.parametrize(
    "query",
    ["ssl_cert_reqs=none", "ssl_cert_reqs=CERT_NONE", "ssl_cert_reqs=optional", "ssl_check_hostname=false"],
)
def test_the_check_cannot_be_switched_off_in_the_url(query: str) -> None:
    with pytest.raises(SettingsError, match="REVLN_REDIS_URL") as caught:
        Settings.from_env({"REVLN_REDIS_URL": f"rediss://:{PASSWORD}@h:6379/0?{query}"})
    assert PASSWORD not in caught.value.message


def test_files_that_the_url_names_are_taken(ours: trustme.CA, redis_socket: Path, tmp_path: Path) -> None:
    file = tmp_path / "ca of ours.pem"
    ours.cert_pem.write_to_path(file)
    with tls_front(ours.issue_cert("127.0.0.1"), redis_socket) as front:
        query = f"ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={str(file).replace(' ', '%20')}"
        settings = Settings(data_dir=tmp_path, redis_url=f"rediss://:{PASSWORD}@127.0.0.1:{front.port}/0?{query}")
        for ping in CLIENTS.values():
            assert ping(settings)
