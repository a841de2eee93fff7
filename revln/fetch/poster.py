"""The poster: hands a body to a URL that a stranger gave us, and looks at nothing of the answer but its status."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from revln.errors import FetchRefused
from revln.fetch.addresses import address_refusal, literal_address
from revln.fetch.deadline import Deadline
from revln.fetch.guarded import Guarded
from revln.fetch.lookup import Resolver
from revln.fetch.target import Target, parse_target

__all__ = ["Answer", "UrlPoster", "postable"]

# The web's, and those that programs without privileges listen on; never those of mail or shells.
_PORTS = (80, 443, range(1024, 65536))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: 100 to 999, and the Retry-After header or an empty text."""

    status: int
    retry_after: str


def postable(url: str, allow_private: bool) -> Target:
    """Judge a URL as far as that goes without asking for its name's addresses.

    Raises:
        FetchRefused: it is malformed, or names a port or an address that we never go to.
    """
    target = parse_target(url, _PORTS)
    literal = literal_address(target.host)
    kind = address_refusal(literal, allow_private) if literal else None
    if kind is not None:
        raise FetchRefused(f"{target.shown} leads to an address that is {kind}; revln does not go there.")
    return target


class UrlPoster(Guarded):
    """Posts to URLs. ``timeout_s`` covers everything: the lookup, the request, the answer."""

    _done = "reached"

    def __init__(
        self,
        timeout_s: float,
        allow_private: bool,
        resolve: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(allow_private, resolve, ssl_context)
        self._timeout_s = timeout_s

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post, and follow no redirect.

        Raises:
            FetchRefused: the URL or an address is not one that we go to.
            FetchError: no answer came.
        """
        deadline = Deadline(self._timeout_s)
        target = postable(url, self._allow_private)
        sent: list[tuple[bytes | str, bytes | str]] = [
            ("Host", target.authority),
            ("Content-Length", str(len(body))),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
            ("User-Agent", "revln/0.1"),
            *headers.items(),
        ]
        late = f"{target.shown} did not answer within {self._timeout_s:g} s."
        with (
            self._connection(target, deadline, 0, late) as connection,
            connection.stream("POST", target.url, headers=sent, content=body) as response,
        ):
            # The body is not read: how much there is of it, and whether it ever ends, changes nothing, and what a
            # stranger's server says is nobody's to see.
            asked = next((value for name, value in response.headers if name.lower() == b"retry-after"), b"")
            return Answer(response.status, asked.decode("latin-1"))
