"""The fetcher: its policy, its hops, and what it makes of an answer."""

from __future__ import annotations

import ipaddress
import ssl
import threading
from dataclasses import dataclass

import httpcore

from revln.errors import FetchError, FetchRefused
from revln.fetch.addresses import address_refusal, literal_address
from revln.fetch.deadline import Deadline
from revln.fetch.lookup import Resolver, bounded_lookup, system_resolve
from revln.fetch.pinned import PinnedBackend
from revln.fetch.target import Target, join_location, parse_target

__all__ = ["FetchPolicy", "UrlFetcher"]

_HEADER_BYTES = 256 * 2**10  # what a response may spend besides its body; h11 allows one block 100 KiB
_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSIENT = {408, 425, 429}  # the statuses below 500 that ask for another try


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What may be fetched. The defaults fetch nothing.

    ``timeout_s`` covers everything: the lookup, all hops, the last byte. ``allow_private`` admits loopback and private
    addresses (a closed network, a test); link-local, cloud metadata, multicast and disguised addresses stay refused.
    """

    enabled: bool = False
    max_bytes: int = 25 * 2**20
    timeout_s: float = 10.0
    ports: tuple[int, ...] = (80, 443)
    allow_private: bool = False
    max_redirects: int = 3


class _FailedForGood(FetchError):
    """A failure that another try would not mend, such as a 404."""

    retryable = False


class UrlFetcher:
    """Fetches URLs under one policy. Thread-safe: nothing is kept between two calls but the certificates.

    ``resolve`` and ``ssl_context`` are there for tests: names to addresses, and whom to trust.
    """

    def __init__(
        self, policy: FetchPolicy, resolve: Resolver | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self.policy = policy
        self._resolve = resolve or system_resolve
        self._ssl_context = ssl_context
        self._lock = threading.Lock()

    def get(self, url: str) -> bytes:
        """Fetch the body of a 200 answer.

        Raises:
            FetchRefused: fetching is off, or the URL, a redirect's target or an address is not one that we go to.
            FetchError: it failed. ``retryable`` is False where another try would not help: a 404, too many bytes.
        """
        if not self.policy.enabled:
            raise FetchRefused(
                "This server does not fetch URLs. Upload the picture instead, or set REVLN_FETCH_URLS=true."
            )
        deadline = Deadline(self.policy.timeout_s)
        for _ in range(self.policy.max_redirects + 1):
            target = parse_target(url, self.policy.ports)
            body, location = self._hop(target, deadline)
            if location is None:
                return body
            url = join_location(target, location)
        raise FetchRefused(
            f"{target.shown} redirects more than {self.policy.max_redirects} times. Give the final address."
        )

    def _hop(self, target: Target, deadline: Deadline) -> tuple[bytes, str | None]:
        """One request: the body, or where it redirects to."""
        addresses = self._addresses(target, deadline)
        backend = PinnedBackend(addresses, deadline, self.policy.max_bytes + _HEADER_BYTES)
        origin = httpcore.Origin(target.scheme.encode(), target.host.encode(), target.port)
        context = self._certificates() if target.scheme == "https" else None
        try:
            with (
                httpcore.HTTPConnection(origin, ssl_context=context, network_backend=backend) as connection,
                connection.stream(
                    "GET",
                    httpcore.URL(
                        scheme=origin.scheme, host=origin.host, port=target.port, target=target.path.encode("ascii")
                    ),
                    headers={
                        "Host": target.shown.partition("://")[2],
                        "Accept": "image/*, */*;q=0.5",
                        "Accept-Encoding": "identity",  # nothing is inflated here: no bomb
                        "Connection": "close",
                        "User-Agent": "revln/0.1",
                    },
                ) as response,
            ):
                location = _judge(response, target, self.policy.max_bytes)
                return (b"", location) if location is not None else (self._body(response, target), None)
        except httpcore.TimeoutException as err:
            raise FetchError(
                f"{target.shown} did not send it all within {self.policy.timeout_s:g} s (REVLN_FETCH_TIMEOUT_S)."
            ) from err
        except (httpcore.NetworkError, httpcore.ProtocolError) as err:
            if isinstance(err.__cause__, ssl.SSLCertVerificationError):
                raise _FailedForGood(f"{target.shown} shows a certificate that cannot be trusted.") from err
            raise FetchError(f"{target.shown} could not be fetched ({type(err).__name__}).") from err

    def _addresses(self, target: Target, deadline: Deadline) -> list[str]:
        """Resolve and judge. One bad address in the answer refuses the name: honest names do not mix the two."""
        literal = literal_address(target.host)
        names = [target.host] if literal else bounded_lookup(self._resolve, target, deadline)
        for name in names:
            kind = address_refusal(ipaddress.ip_address(name), self.policy.allow_private)
            if kind is not None:
                raise FetchRefused(f"{target.shown} leads to an address that is {kind}; revln does not go there.")
        return list(names)

    def _body(self, response: httpcore.Response, target: Target) -> bytes:
        body = bytearray()
        for chunk in response.iter_stream():
            body += chunk
            if len(body) > self.policy.max_bytes:
                raise _too_large(target, self.policy.max_bytes)
        return bytes(body)

    def _certificates(self) -> ssl.SSLContext:
        """Made at the first https URL, not in the constructor: it takes 20 ms and reads files."""
        with self._lock:
            if self._ssl_context is None:
                self._ssl_context = httpcore.default_ssl_context()
            return self._ssl_context


def _judge(response: httpcore.Response, target: Target, max_bytes: int) -> str | None:
    """Look at status and headers: the redirect's target, None if a body follows, or an error."""
    headers = {name.lower(): value for name, value in response.headers}
    if response.status in _REDIRECTS and b"location" in headers:
        return headers[b"location"].decode("latin-1")
    if response.status != 200:
        again = response.status >= 500 or response.status in _TRANSIENT
        raise (FetchError if again else _FailedForGood)(f"{target.shown} answered with status {response.status}.")
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        raise _FailedForGood(f"{target.shown} sends compressed bytes although it was asked for plain ones.")
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > max_bytes:
        raise _too_large(target, max_bytes)
    return None


def _too_large(target: Target, max_bytes: int) -> FetchError:
    return _FailedForGood(f"{target.shown} sends more than {max_bytes:,} bytes, the limit (REVLN_FETCH_MAX_BYTES).")
