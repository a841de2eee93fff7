"""Every connection to Redis is made here, so that all of them check certificates alike; and every name on it."""

from __future__ import annotations

import ssl
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from revln.addresses import RedisAddress, parse_redis_url
from revln.settings import Settings

__all__ = ["ANSWER_S", "RedisNames", "broker_options", "connect_redis", "connect_redis_async", "redis_pool_async"]

ANSWER_S = 2  # a frozen Redis hangs a publisher for over 40 s by default [measured]; with this it fails within 6 s


class RedisNames:
    """Our own keys and channels, each with REVLN_REDIS_PREFIX; Celery's get it from kombu (`revln.broker`)."""

    def __init__(self, settings: Settings) -> None:
        self._prefix = settings.redis_prefix
        # Changes of collections, as [tenant, name], to workers that hold their indexes; hints as well.
        self.collections_channel = f"{self._prefix}revln:collections"
        self.installation = f"{self._prefix}revln:installation"
        self.rates = f"{self._prefix}revln:rate"

    def queue(self, name: str) -> str:
        """Return the list that is Celery's queue."""
        return f"{self._prefix}{name}"

    def job_channel(self, job_id: str) -> str:
        """Return the pub/sub channel on which a job's changes are called out; a hint, never the truth."""
        return f"{self._prefix}revln:job:{job_id}"

    def canary_key(self, nonce: str) -> str:
        """Return the list on which a worker answers a canary."""
        return f"{self._prefix}revln:canary:{nonce}"


def connect_redis(settings: Settings) -> redis.Redis:
    """Make a client that gives up within seconds, for everything but Celery itself."""
    return redis.Redis.from_url(
        _redis_py_url(_address(settings)),
        socket_timeout=ANSWER_S,
        socket_connect_timeout=ANSWER_S,
        # Once more, because a connection that was kept may be one to a server of before; redis-py's own three times
        # with pauses make ten seconds of two when it is frozen.
        retry=Retry(NoBackoff(), 1),
        decode_responses=True,
        **_tls(settings),
    )


def connect_redis_async(settings: Settings, **options: Any) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(
        _redis_py_url(_address(settings)), decode_responses=True, **_tls(settings), **options
    )


def redis_pool_async(settings: Settings, **options: Any) -> redis.asyncio.ConnectionPool:
    return redis.asyncio.ConnectionPool.from_url(_redis_py_url(_address(settings)), **_tls(settings), **options)


def broker_options(settings: Settings) -> dict[str, Any]:
    """Return Celery's settings of the broker; Flower reads the same.

    kombu takes ``rediss://`` without ``broker_use_ssl`` for "check nothing", and warns of it at a level nobody reads.
    """
    address = _address(settings)
    url = address.url
    if address.scheme == "redis+socket" and address.number:
        url += f"?virtual_host={address.number}"
    return {"broker_url": url, **({"broker_use_ssl": tls} if (tls := _tls(settings)) else {})}


def _address(settings: Settings) -> RedisAddress:
    return parse_redis_url(settings.resolved_redis_url)


def _redis_py_url(address: RedisAddress) -> str:
    """kombu writes ``redis+socket://`` where redis-py writes ``unix://``."""
    if address.scheme != "redis+socket":
        return address.url
    return address.url.replace("redis+socket://", "unix://", 1) + f"?db={address.number}"


def _tls(settings: Settings) -> dict[str, Any]:
    address = _address(settings)
    if address.scheme != "rediss":
        return {}
    ca = {"ssl_ca_certs": str(settings.redis_ca_file)} if settings.redis_ca_file else {}
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, **address.tls_files, **ca}
