"""Headers of every answer: a browser neither guesses, frames, runs nor keeps what we send. And HEAD, for them alone."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CORS_EXPOSED", "CORS_HEADERS", "CORS_METHODS", "AnswerHead", "SecureHeaders", "content_policy"]

# What pages of the origins in REVLN_CORS_ORIGINS may send and see.
CORS_METHODS = ["GET", "POST", "PUT", "DELETE"]
CORS_HEADERS = ["Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Prefer"]
CORS_EXPOSED = ["ETag", "Location", "Preference-Applied", "Retry-After", "WWW-Authenticate"]


def content_policy(*more: str) -> str:
    """A Content-Security-Policy that allows nothing, and ``more``."""
    nothing = ("default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'")
    return "; ".join((*nothing, *more))


_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": content_policy(),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # jobs, results and pictures are private; a route that knows better says so
}


_MOVED = 307


class SecureHeaders:
    """ASGI wrapper around everything, the answer to an unexpected error included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if message["status"] == _MOVED and "location" in headers:
                    # To the same path without its slash. Starlette writes the Host that it was sent before it.
                    headers["location"] = urlsplit(headers["location"])._replace(scheme="", netloc="").geturl()
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


class AnswerHead:
    """ASGI wrapper that answers HEAD as GET without the body; what has no GET is refused as GET is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        answered = False

        async def head_only(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                await send(message)
            elif not answered:
                # At the first piece: a stream of events has no last one. The server then tells it that the client left.
                answered = True
                await send({"type": "http.response.body", "body": b""})

        await self._app({**scope, "method": "GET"}, receive, head_only)
