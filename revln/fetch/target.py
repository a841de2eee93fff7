"""A URL taken apart, strictly: what two parsers could read in two ways is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import httpcore
import idna

from revln.errors import FetchRefused
from revln.fetch.addresses import literal_address

__all__ = ["Target", "join_location", "parse_target"]

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NETLOC = re.compile(r"([^\[\]:]+|\[[0-9a-fA-F:.]+\])(:\d*)?")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")  # a last label like this makes the host an IPv4 address, in some spelling
_MAX_URL_CHARS = 8_192


@dataclass(frozen=True, slots=True)
class Target:
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

    @property
    def authority(self) -> str:
        """What the Host header says."""
        return self.shown.partition("://")[2]

    @property
    def url(self) -> httpcore.URL:
        return httpcore.URL(
            scheme=self.scheme.encode(), host=self.host.encode(), port=self.port, target=self.path.encode("ascii")
        )


def parse_target(url: str, ports: tuple[int | range, ...]) -> Target:
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
    if not any(port in one if isinstance(one, range) else port == one for one in ports):
        allowed = ", ".join(f"{one[0]} to {one[-1]}" if isinstance(one, range) else str(one) for one in ports)
        raise FetchRefused(f"The URL's port is {port}; only {allowed} are allowed.")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    return Target(parts.scheme, _host(parts.hostname or ""), port, path)


def _host(host: str) -> str:
    """A host in the one spelling that is judged, dialled, greeted and sent."""
    if ":" in host:
        address = literal_address(host)
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
    if _NUMBER.fullmatch(host.rpartition(".")[2]) and literal_address(host) is None:
        raise FetchRefused("The URL's host is an odd spelling of an IPv4 address. Write it as four decimal numbers.")
    return host


def join_location(target: Target, location: str) -> str:
    """The URL that a redirect leads to. Raises `FetchRefused` where it is malformed."""
    try:
        return urljoin(target.shown + target.path, location)
    except ValueError as err:
        raise FetchRefused(f"{target.shown} redirects to a malformed URL.") from err
