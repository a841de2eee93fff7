"""How large, slow and costly a body may be, told as it arrives: a chunked one has no Content-Length to believe."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.encodings import Gunzip, encoding_of, without_encoding
from api.problems import problem_response
from revln.errors import BodyTooSlow, PayloadTooLarge, RevlnError, Unavailable, UsersError
from revln.settings import Settings

__all__ = ["LimitBody"]

_MANIFESTS = "/v1/manifests"
_GRACE_S = 30.0  # waited for a body besides a second for every 10 kB of it: a modem's pace
_LEAST_BYTES_PER_S = 10_000
# What characters of JSON become when it is parsed, in bytes of CPython 3.11: `[],[],…` takes 27 times its size.
_PARSED_BYTES = {b",": 40, b"[": 40, b"{": 170, b'"': 25}
_SHARE = 4  # of the memory for all bodies, one may take a quarter


class LimitBody:
    """ASGI middleware that answers 413, 408 or 503 once a body is too large, too slow, or too much beside others."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        grace_s: float = _GRACE_S,
        least_bytes_per_s: int = _LEAST_BYTES_PER_S,
    ) -> None:
        self._app = app
        self.grace_s, self.least_bytes_per_s = grace_s, least_bytes_per_s
        self._settings = settings
        self.held_bytes = 0  # by all bodies under way, as parsed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(self, self._settings, scope, receive)
        answered = False

        async def watch(message: Message) -> None:
            nonlocal answered
            # A framework may have caught _Refused and made an answer of its own: ours goes out instead.
            if answered or body.refusal is None:
                answered = True
                await send(message)

        if body.refusal is None:
            try:
                with contextlib.suppress(_Refused):
                    await self._app(body.scope, body.receive, watch)
            finally:
                self.held_bytes -= body.held_bytes
        if body.refusal is not None and not answered:
            await problem_response(body.refusal, scope["path"])(scope, receive, send)


class _Body:
    """One body on its way; ``refusal`` says why no more of it is read."""

    def __init__(self, all_bodies: LimitBody, settings: Settings, scope: Scope, receive: Receive) -> None:
        headers = Headers(scope=scope)
        self._all = all_bodies
        self._receive = receive
        self._manifest = scope["path"].rstrip("/") == _MANIFESTS
        self._is_json = "json" in headers.get("content-type", "").lower()
        self._limit = settings.max_manifest_bytes if self._manifest else settings.max_body_bytes
        self._memory = settings.body_memory_bytes
        self._seen = 0
        self._waited_s = 0.0
        self._ended = False
        self.held_bytes = 0
        self.refusal: RevlnError | None = None
        self.scope = scope
        self._gunzip: Gunzip | None = None
        self._decoded: Iterator[bytes] = iter(())
        declared = headers.get("content-length", "")
        self._size = f"has {declared} bytes" if declared.isdecimal() else "is larger than that"
        if declared.isdecimal() and int(declared) > self._limit:
            self.refusal = self._too_large()
        try:
            if encoding_of(headers):
                self.scope, self._gunzip = without_encoding(scope), Gunzip()
        except UsersError as err:
            self.refusal = err

    async def receive(self) -> Message:
        """One piece of the body; what is encoded is decoded, and every limit is on what it becomes."""
        if (gunzip := self._gunzip) is None:
            message = await self._next()
            self._count(message.get("body", b""))
            return message
        while True:
            try:
                if (piece := next(self._decoded, None)) is not None:
                    self._count(piece)
                    await asyncio.sleep(0)  # a bomb is unpacked for as long as the limit lets it
                    return {"type": "http.request", "body": piece, "more_body": True}
                if self._ended:
                    gunzip.end()
                    self._gunzip = None
                    return {"type": "http.request", "body": b"", "more_body": False}
                message = await self._next()
                if message["type"] == "http.disconnect":
                    return message
                self._decoded = gunzip.feed(message.get("body", b""))
            except UsersError as err:
                raise self._refuse(err) from err

    async def _next(self) -> Message:
        if self._ended:  # what comes now is the client's leaving, for which a stream waits
            return await self._receive()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._allowed_s - self._waited_s):
                message = await self._receive()
        except TimeoutError:
            raise self._refuse(self._too_slow()) from None
        self._waited_s += loop.time() - began  # not what we took for it ourselves
        self._ended = not message.get("more_body", False)
        return message

    @property
    def _allowed_s(self) -> float:
        return self._all.grace_s + self._seen / self._all.least_bytes_per_s

    def _count(self, piece: bytes) -> None:
        self._seen += len(piece)
        if self._seen > self._limit:
            raise self._refuse(self._too_large())
        if self._manifest:  # goes to the blob store as it comes
            return
        parsed = sum(piece.count(char) * size for char, size in _PARSED_BYTES.items()) if self._is_json else 0
        self.held_bytes += len(piece) + parsed
        self._all.held_bytes += len(piece) + parsed
        if parsed and self.held_bytes > self._memory // _SHARE:
            raise self._refuse(self._too_many_values())
        if self._all.held_bytes > self._memory:
            raise self._refuse(
                Unavailable(
                    f"The bodies that are being read take more than {self._memory:,} bytes (REVLN_BODY_MEMORY_BYTES). "
                    "Send this one again in a moment."
                )
            )

    def _refuse(self, refusal: RevlnError) -> _Refused:
        self.refusal = refusal
        return _Refused()

    def _too_large(self) -> PayloadTooLarge:
        setting = "REVLN_MAX_MANIFEST_BYTES" if self._manifest else "REVLN_MAX_BODY_BYTES"
        way_out = (
            "Split it." if self._manifest else "Upload pictures one by one, and long lists of items as a manifest."
        )
        return PayloadTooLarge(
            f"At most {self._limit} bytes are read here ({setting}); the body {self._size}. {way_out}"
        )

    def _too_slow(self) -> BodyTooSlow:
        return BodyTooSlow(
            f"{self._seen:,} bytes of the body came in {self._allowed_s:.0f} s: {self._all.grace_s:g} s are waited, "
            f"and one more for every {self._all.least_bytes_per_s:,} bytes. Send it faster, or in smaller parts."
        )

    def _too_many_values(self) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"The first {self._seen:,} bytes of the body have so many values that they take {self.held_bytes:,} bytes "
            f"when they are parsed; at most {self._memory // _SHARE:,} are given to one body, a quarter of "
            "REVLN_BODY_MEMORY_BYTES. Send vectors as vector_b64, and long lists of items as a manifest."
        )


class _Refused(Exception):
    """Unwinds the route that was reading."""
