"""Connections to addresses that were judged, and what their failures are called."""

from __future__ import annotations

import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpcore

from revln.errors import FetchError, FetchRefused
from revln.fetch.addresses import address_refusal, literal_address
from revln.fetch.deadline import Deadline
from revln.fetch.lookup import Resolver, bounded_lookup, system_resolve
from revln.fetch.pinned import PinnedBackend
from revln.fetch.target import Target

__all__ = ["FailedForGood", "Guarded"]

_HEADER_BYTES = 256 * 2**10  # what a response may spend besides its body; h11 allows one block 100 KiB


class FailedForGood(FetchError):
    """A failure that another try would not mend, such as a 404."""

    retryable = False


class Guarded:
    """Thread-safe: nothing is kept between two calls but the certificates.

    ``resolve`` and ``ssl_context`` are there for tests: names to addresses, and whom to trust.
    """

    _done = "fetched"  # what a broken connection kept us from

    def __init__(self, allow_private: bool, resolve: Resolver | None, ssl_context: ssl.SSLContext | None) -> None:
        self._allow_private = allow_private
        self._resolve = resolve or system_resolve
        self._ssl_context = ssl_context
        self._lock = threading.Lock()

    @contextmanager
    def _connection(
        self, target: Target, deadline: Deadline, max_bytes: int, late: str
    ) -> Iterator[httpcore.HTTPConnection]:
        """A connection for one request whose answer's body has up to ``max_bytes``.

        Raises:
            FetchRefused: the name leads to an address that we do not go to.
            FetchError: no connection, or it broke; with the message ``late`` if the deadline passed.
        """
        addresses = self._addresses(target, deadline)
        backend = PinnedBackend(addresses, deadline, max_bytes + _HEADER_BYTES)
        origin = httpcore.Origin(target.scheme.encode(), target.host.encode(), target.port)
        context = self._certificates() if target.scheme == "https" else None
        try:
            with httpcore.HTTPConnection(origin, ssl_context=context, network_backend=backend) as connection:
                yield connection
        except httpcore.TimeoutException as err:
            raise FetchError(late) from err
        except (httpcore.NetworkError, httpcore.ProtocolError) as err:
            if isinstance(err.__cause__, ssl.SSLCertVerificationError):
                raise FailedForGood(f"{target.shown} shows a certificate that cannot be trusted.") from err
            raise FetchError(f"{target.shown} could not be {self._done} ({type(err).__name__}).") from err

    def _addresses(self, target: Target, deadline: Deadline) -> list[str]:
        """Resolve and judge. One bad address in the answer refuses the name: honest names do not mix the two."""
        literal = literal_address(target.host)
        names = [target.host] if literal else bounded_lookup(self._resolve, target, deadline)
        for name in names:
            kind = address_refusal(ipaddress.ip_address(name), self._allow_private)
            if kind is not None:
                raise FetchRefused(f"{target.shown} leads to an address that is {kind}; revln does not go there.")
        return list(names)

    def _certificates(self) -> ssl.SSLContext:
        """Made at the first https URL, not in the constructor: it takes 20 ms and reads files."""
        with self._lock:
            if self._ssl_context is None:
                self._ssl_context = httpcore.default_ssl_context()
            return self._ssl_context
