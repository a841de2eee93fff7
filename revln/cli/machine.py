"""What `revln up` makes sure of before it starts anything: who could reach it, its ports, its folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from revln import embedded_redis
from revln.errors import StartupError
from revln.exposure import require_api_key, require_flower_login
from revln.settings import Settings

__all__ = ["check_exposure", "claim_port", "sole_user"]


def check_exposure(settings: Settings) -> None:
    """Raises SettingsError if other machines could use it without a key or a password."""
    require_api_key(settings)
    require_flower_login(settings)


def claim_port(host: str, port: int, flag: str) -> int:
    """The port, or a free one for 0.

    Raises:
        StartupError: it cannot be bound.
    """
    try:
        if port == 0:
            return embedded_redis.free_port(host)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As servers do: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise StartupError(
            f"Port {port} on {host} cannot be used ({error.strerror or error}). Stop what holds it, or choose another: "
            f"{flag} 0 takes a free one."
        ) from error
    return port


@contextlib.contextmanager
def sole_user(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for us alone; the kernel lets go when we die, however that happens.

    Raises:
        StartupError: another `revln up` holds it, or it cannot be written.
    """
    lock = data_dir / "up.lock"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartupError(f"The data folder {data_dir} cannot be used: {error.strerror}.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 32).decode(errors="replace").strip()
        os.close(handle)
        raise StartupError(
            f"Another revln up (process {holder or 'unknown'}) runs on the data folder {data_dir}. Stop it, or give "
            "this one a folder of its own: --data-dir DIR."
        ) from error
    try:
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)
