"""Count the bytes of a body as they arrive: a chunked body has no Content-Length to believe."""

from __future__ import annotations

import contextlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import problem_response
from revln.errors import PayloadTooLarge
from revln.settings import Settings

__all__ = ["LimitBody"]

_MANIFESTS = "/v1/manifests"


class LimitBody:
    """ASGI middleware that answers 413 once a body is larger than its route allows."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._limit = settings.max_body_bytes
        self._manifest_limit = settings.max_manifest_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        manifest = scope["path"].rstrip("/") == _MANIFESTS
        limit = self._manifest_limit if manifest else self._limit
        setting = "REVLN_MAX_MANIFEST_BYTES" if manifest else "REVLN_MAX_BODY_BYTES"
        way_out = "Split it." if manifest else "Upload pictures one by one, and long lists of items as a manifest."
        declared = Headers(scope=scope).get("content-length", "")
        size = f"has {declared} bytes" if declared.isdecimal() else "is larger than that"
        too_large = PayloadTooLarge(f"At most {limit} bytes are read here ({setting}); the body {size}. {way_out}")
        if declared.isdecimal() and int(declared) > limit:
            await problem_response(too_large, scope["path"])(scope, receive, send)
            return
        seen = 0
        answered = False

        async def count() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _TooLarge
            return message

        async def watch(message: Message) -> None:
            nonlocal answered
            # A framework may have caught _TooLarge and made an answer of its own: ours goes out instead.
            if answered or seen <= limit:
                answered = True
                await send(message)

        with contextlib.suppress(_TooLarge):
            await self._app(scope, count, watch)
        if seen > limit and not answered:
            await problem_response(too_large, scope["path"])(scope, receive, send)


class _TooLarge(Exception):
    """Unwinds the route that was reading."""
