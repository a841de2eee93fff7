"""Content-Encoding of a request: gzip is read, a bounded piece at a time; others are refused."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.types import Scope

from api.problems import MalformedEncoding
from revln.errors import UnsupportedMedia

__all__ = ["Gunzip", "encoding_of", "without_encoding"]

_PIECE_BYTES = 256 * 2**10  # a kilobyte may become a megabyte: what is too much must be told before it is held
_GZIP = 16 + zlib.MAX_WBITS


def encoding_of(headers: Headers) -> str | None:
    """Return ``gzip``, or None where the body is sent as it is.

    Raises:
        UnsupportedMedia: it is encoded otherwise, or more than once.
    """
    named = ",".join(headers.getlist("content-encoding")).lower().split(",")
    codings = [one.strip() for one in named if one.strip() not in ("", "identity")]
    if not codings:
        return None
    if codings not in (["gzip"], ["x-gzip"]):
        raise UnsupportedMedia(
            f"Content-Encoding: {', '.join(codings)[:100]} is not read here; send gzip, or the body as it is."
        )
    return "gzip"


def without_encoding(scope: Scope) -> Scope:
    """Return the scope as it is for whoever reads the decoded body: its length is not known yet."""
    gone = (b"content-encoding", b"content-length")
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name not in gone]}


class Gunzip:
    """One gzip body, of one member or several after each other."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP)
        self._fed = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what these bytes become, in pieces. Raises MalformedEncoding."""
        while data:
            if self._member.eof:
                self._member = zlib.decompressobj(_GZIP)
            try:
                piece = self._member.decompress(data, _PIECE_BYTES)
            except zlib.error as err:
                raise MalformedEncoding(f"The body is not gzip, as Content-Encoding has it: {err}.") from err
            self._fed = True
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if piece:
                yield piece

    def end(self) -> None:
        """Raises MalformedEncoding if the last member is cut short."""
        if self._fed and not self._member.eof:
            raise MalformedEncoding("The gzip body ends in the middle. Send it whole.")
