"""Fetch a URL that a stranger gave us, without becoming the stranger's hand inside our network.

The address that was checked is the address that is dialled: names are resolved here, once for each hop, every address
of the answer is judged, and httpcore is given a network backend that dials those addresses and nothing else. The URL's
name still goes into the Host header, the TLS greeting and the certificate check.

httpcore, not the httpx above it: httpx logs every URL with its query at INFO, reads proxies and netrc unless told not
to, and times each read but not the whole, so a server that sends a byte every nine seconds holds a thread for days.
"""

# ruff: noqa: ARG002 (the network backend's signatures are httpcore's; its timeouts give way to our one deadline)
from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore
import idna

from revln.errors import FetchError, FetchRefused

__all__ = ["FetchPolicy", "UrlFetcher", "address_refusal"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]

# IANA's special-purpose registries, written out: `is_global` says other things in other versions of Python.
_NEVER_V4 = {
    "0.0.0.0/8": "unspecified",
    "169.254.0.0/16": "link-local (cloud metadata lives there)",
    "100.100.100.200/32": "cloud metadata",
    "168.63.129.16/32": "cloud metadata",
    "192.0.0.0/24": "reserved",
    "192.0.2.0/24": "documentation",
    "192.88.99.0/24": "6to4 relay",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
}
_PRIVATE_V4 = {
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "shared (carrier NAT)",
    "127.0.0.0/8": "loopback",
    "172.16.0.0/12": "private",
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "benchmarking",
}
# Of IPv6 only 2000::/3 is public at all, so these are the exceptions inside it and the private ones outside.
_NEVER_V6 = {
    "2001::/23": "Teredo or reserved",
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4 (an IPv4 address in disguise)",
    "3fff::/20": "documentation",
    "fd00:ec2::/32": "cloud metadata",
}
_PRIVATE_V6 = {"::1/128": "loopback", "fc00::/7": "private"}
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")


def _networks(table: dict[str, str]) -> tuple[tuple[Any, str], ...]:
    return tuple((ipaddress.ip_network(network), kind) for network, kind in table.items())


_NEVER = {4: _networks(_NEVER_V4), 6: _networks(_NEVER_V6)}
_PRIVATE = {4: _networks(_PRIVATE_V4), 6: _networks(_PRIVATE_V6)}

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NETLOC = re.compile(r"([^\[\]:]+|\[[0-9a-fA-F:.]+\])(:\d*)?")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")  # a last label like this makes the host an IPv4 address, in some spelling
_MAX_URL_CHARS = 8_192
_HEADER_BYTES = 256 * 2**10  # what a response may spend besides its body; h11 allows one block 100 KiB
_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSIENT = {408, 425, 429}  # the statuses below 500 that ask for another try

# getaddrinfo cannot be interrupted. Lookups wait in threads of their own, so that a resolver that hangs costs at most
# this many threads; whoever comes after that times out at the door.
_LOOKUPS = threading.BoundedSemaphore(32)


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


@dataclass(frozen=True, slots=True)
class _Target:
    """One hop, taken apart. ``shown`` is what a message may say of it: no query, no path."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def shown(self) -> str:
        default = {"http": 80, "https": 443}[self.scheme]
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == default else f":{self.port}")


def address_refusal(address: Address, allow_private: bool = False) -> str | None:
    """Say what kind of address this is if it must not be dialled; None if it may."""
    for network, kind in _NEVER[address.version]:
        if address in network:
            return str(kind)
    for network, kind in _PRIVATE[address.version]:
        if address in network:
            return None if allow_private else str(kind)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return "scoped"
        if address not in _PUBLIC_V6:  # mapped ::ffff:…, translated 64:ff9b::…, link-local, multicast, unassigned
            return "not public IPv6"
    return None


class UrlFetcher:
    """Fetches URLs under one policy. Thread-safe: nothing is kept between two calls but the certificates.

    ``resolve`` and ``ssl_context`` are there for tests: names to addresses, and whom to trust.
    """

    def __init__(
        self, policy: FetchPolicy, resolve: Resolver | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self.policy = policy
        self._resolve = resolve or _system_resolve
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
        deadline = _Deadline(self.policy.timeout_s)
        for _ in range(self.policy.max_redirects + 1):
            target = self._parse(url)
            body, location = self._hop(target, deadline)
            if location is None:
                return body
            url = _join(target, location)
        raise FetchRefused(
            f"{target.shown} redirects more than {self.policy.max_redirects} times. Give the final address."
        )

    def _parse(self, url: str) -> _Target:
        """Take a URL apart, strictly. What two parsers could read in two ways is refused."""
        if len(url) > _MAX_URL_CHARS:
            raise FetchRefused(f"The URL has {len(url):,} characters; the limit is {_MAX_URL_CHARS:,}.")
        if any(ord(char) <= 32 or ord(char) == 127 or char == "\\" for char in url):
            raise FetchRefused("The URL holds a space, a control character or a backslash. Percent-encode it.")
        try:
            url.encode()  # half a surrogate pair is no character
            parts = urlsplit(url)
            port = parts.port
        except ValueError as err:
            raise FetchRefused("The URL is malformed.") from err
        if parts.scheme not in ("http", "https"):
            raise FetchRefused(f"The URL's scheme is {parts.scheme[:20]!r}; only http and https are fetched.")
        if "@" in parts.netloc:
            raise FetchRefused("The URL holds a user name or a password. Give a URL without them.")
        if not _NETLOC.fullmatch(parts.netloc):
            raise FetchRefused("The URL's host and port are malformed.")
        if port is None:
            port = 443 if parts.scheme == "https" else 80
        if port not in self.policy.ports:
            allowed = ", ".join(map(str, self.policy.ports))
            raise FetchRefused(f"The URL's port is {port}; only {allowed} are allowed.")
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if parts.query:
            path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        return _Target(parts.scheme, _host(parts.hostname or ""), port, path)

    def _hop(self, target: _Target, deadline: _Deadline) -> tuple[bytes, str | None]:
        """One request: the body, or where it redirects to."""
        addresses = self._addresses(target, deadline)
        backend = _PinnedBackend(addresses, deadline, self.policy.max_bytes + _HEADER_BYTES)
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

    def _addresses(self, target: _Target, deadline: _Deadline) -> list[str]:
        """Resolve and judge. One bad address in the answer refuses the name: honest names do not mix the two."""
        literal = _literal(target.host)
        names = [target.host] if literal else _bounded_lookup(self._resolve, target, deadline)
        for name in names:
            kind = address_refusal(ipaddress.ip_address(name), self.policy.allow_private)
            if kind is not None:
                raise FetchRefused(f"{target.shown} leads to an address that is {kind}; revln does not go there.")
        return list(names)

    def _body(self, response: httpcore.Response, target: _Target) -> bytes:
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


# --- the socket's side -------------------------------------------------------------------------------------------


class _Deadline:
    """One moment for everything that one fetch does."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, more than 0.

        Raises:
            httpcore.ReadTimeout: none are.
        """
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise httpcore.ReadTimeout("the deadline passed")
        return seconds


class _PinnedBackend(httpcore.SyncBackend):
    """Dials only the addresses that were judged, whatever name it is given."""

    def __init__(self, addresses: Sequence[str], deadline: _Deadline, max_bytes: int) -> None:
        self._addresses, self._deadline, self._max_bytes = addresses, deadline, max_bytes

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        for position, address in enumerate(self._addresses, start=1):
            # Each address may take its share of what is left, so that a dead IPv6 route leaves time for IPv4.
            share = self._deadline.left() / (len(self._addresses) - position + 1)
            try:
                stream = super().connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if position == len(self._addresses):
                    raise
            else:
                return _BoundedStream(stream, self._deadline, self._max_bytes)
        raise httpcore.ConnectError("the name has no address")

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        raise httpcore.ConnectError("sockets in the file system are never dialled")


class _BoundedStream(httpcore.NetworkStream):
    """Every operation gets what is left of the deadline, and all bytes are counted: headers and interim answers too."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: _Deadline, max_bytes: int) -> None:
        self._inner, self._deadline, self._bytes_left = inner, deadline, max_bytes

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._inner.read(max_bytes, self._deadline.left())
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise httpcore.ReadError("more bytes than any answer needs")
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        inner = self._inner.start_tls(ssl_context, server_hostname, self._deadline.left())
        return _BoundedStream(inner, self._deadline, self._bytes_left)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


# --- helpers -----------------------------------------------------------------------------------------------------


def _host(host: str) -> str:
    """A host in the one spelling that is judged, dialled, greeted and sent."""
    if ":" in host:
        address = _literal(host)
        if address is None:
            raise FetchRefused("The URL's host is not an IPv6 address.")
        return str(address)
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError) as err:
            raise FetchRefused("The URL's host is not a valid international name.") from err
    host = host.lower().removesuffix(".")
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise FetchRefused("The URL's host is not a name that revln reads.")
    # 2130706433, 0x7f.1, 127.1 and 0177.0.0.1 are all 127.0.0.1 to some resolver; one spelling is enough.
    if _NUMBER.fullmatch(host.rpartition(".")[2]) and _literal(host) is None:
        raise FetchRefused("The URL's host is an odd spelling of an IPv4 address. Write it as four decimal numbers.")
    return host


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _system_resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _bounded_lookup(resolve: Resolver, target: _Target, deadline: _Deadline) -> list[str]:
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


def _judge(response: httpcore.Response, target: _Target, max_bytes: int) -> str | None:
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


def _too_large(target: _Target, max_bytes: int) -> FetchError:
    return _FailedForGood(f"{target.shown} sends more than {max_bytes:,} bytes, the limit (REVLN_FETCH_MAX_BYTES).")


def _join(target: _Target, location: str) -> str:
    try:
        return urljoin(target.shown + target.path, location)
    except ValueError as err:
        raise FetchRefused(f"{target.shown} redirects to a malformed URL.") from err
