"""The fetcher: its policy, its hops, and what it makes of an answer."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

import httpcore

from revln.errors import FetchError, FetchRefused
from revln.fetch.deadline import Deadline
from revln.fetch.guarded import FailedForGood, Guarded
from revln.fetch.lookup import Resolver
from revln.fetch.target import Target, join_location, parse_target

__all__ = ["FetchPolicy", "UrlFetcher"]

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


class UrlFetcher(Guarded):
    """Fetches URLs under one policy."""

    def __init__(
        self, policy: FetchPolicy, resolve: Resolver | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(policy.allow_private, resolve, ssl_context)
        self.policy = policy

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
        late = f"{target.shown} did not send it all within {self.policy.timeout_s:g} s (REVLN_FETCH_TIMEOUT_S)."
        with (
            self._connection(target, deadline, self.policy.max_bytes, late) as connection,
            connection.stream(
                "GET",
                target.url,
                headers={
                    "Host": target.authority,
                    "Accept": "image/*, */*;q=0.5",
                    "Accept-Encoding": "identity",  # nothing is inflated here: no bomb
                    "Connection": "close",
                    "User-Agent": "revln/0.1",
                },
            ) as response,
        ):
            location = _judge(response, target, self.policy.max_bytes)
            return (b"", location) if location is not None else (self._body(response, target), None)

    def _body(self, response: httpcore.Response, target: Target) -> bytes:
        body = bytearray()
        for chunk in response.iter_stream():
            body += chunk
            if len(body) > self.policy.max_bytes:
                raise _too_large(target, self.policy.max_bytes)
        return bytes(body)


def _judge(response: httpcore.Response, target: Target, max_bytes: int) -> str | None:
    """Look at status and headers: the redirect's target, None if a body follows, or an error."""
    headers = {name.lower(): value for name, value in response.headers}
    if response.status in _REDIRECTS and b"location" in headers:
        return headers[b"location"].decode("latin-1")
    if response.status != 200:
        again = response.status >= 500 or response.status in _TRANSIENT
        raise (FetchError if again else FailedForGood)(f"{target.shown} answered with status {response.status}.")
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"", b"identity"):
        raise FailedForGood(f"{target.shown} sends compressed bytes although it was asked for plain ones.")
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > max_bytes:
        raise _too_large(target, max_bytes)
    return None


def _too_large(target: Target, max_bytes: int) -> FetchError:
    return FailedForGood(f"{target.shown} sends more than {max_bytes:,} bytes, the limit (REVLN_FETCH_MAX_BYTES).")
