"""Names to addresses, in threads that may be left waiting."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence

import httpcore

from revln.errors import FetchError
from revln.fetch.deadline import Deadline
from revln.fetch.target import Target

__all__ = ["Resolver", "bounded_lookup", "system_resolve"]

Resolver = Callable[[str, int], Sequence[str]]

# getaddrinfo cannot be interrupted. Lookups wait in threads of their own, so that a resolver that hangs costs at most
# this many threads; whoever comes after that times out at the door.
_LOOKUPS = threading.BoundedSemaphore(32)


def system_resolve(host: str, port: int) -> list[str]:
    """Ask the system's resolver: each address once, in its order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def bounded_lookup(resolve: Resolver, target: Target, deadline: Deadline) -> list[str]:
    """Resolve in another thread, for as long as the deadline leaves."""
    answer: list[str] = []
    failure: list[Exception] = []
    done = threading.Event()

    def look_up() -> None:
        try:
            answer.extend(resolve(target.host, target.port))
        except Exception as err:  # noqa: BLE001 (a thread's end: handed to the one who waits)
            failure.append(err)
        finally:
            _LOOKUPS.release()
            done.set()

    late = FetchError(f"The name of {target.shown} was not resolved in time. Try again.")
    try:
        if not _LOOKUPS.acquire(timeout=deadline.left()):
            raise late
        try:
            threading.Thread(target=look_up, name="revln-lookup", daemon=True).start()
        except RuntimeError as err:  # no thread to be had
            _LOOKUPS.release()
            raise late from err
        if not done.wait(deadline.left()):
            raise late
    except httpcore.ReadTimeout as err:
        raise late from err
    if failure:
        raise FetchError(f"The name of {target.shown} could not be resolved.") from failure[0]
    if not answer:
        raise FetchError(f"The name of {target.shown} has no address.")
    return answer
