"""Answers on their way out: sent in pieces as they are taken, and counted until they are gone.

A server that is handed a whole answer at once keeps it until it has been read: 60 connections that read nothing once
held 2.6 GB. So a large answer is handed on piece by piece, and what is under way has a limit, for each tenant and in
all; `api.server` closes a connection that takes nothing.
"""

from __future__ import annotations

from collections import Counter

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import problem_response
from revln.errors import Unavailable
from revln.settings import Settings

__all__ = ["LimitAnswers"]

_PIECE_BYTES = 64 * 2**10  # as much as the server holds before it makes us wait; what is no larger is not counted
_SHARE = 4  # of the memory for all, a tenant may have a quarter


class LimitAnswers:
    """ASGI middleware inside `api.auth`, which says whose the answer is: 503 for one too many of the large ones."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._memory = settings.body_memory_bytes
        self.held_bytes: Counter[str] = Counter()  # by tenant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope.get("state", {}).get("caller")
        if scope["type"] != "http" or caller is None:
            await self._app(scope, receive, send)
            return
        started: list[Message] = []  # of a large answer: held back until its body is there, for it may become a refusal
        refused = False

        async def send_started() -> None:
            while started:
                await send(started.pop())

        async def in_pieces(message: Message) -> None:
            nonlocal refused
            body = message.get("body", b"")
            if refused:
                return
            if message["type"] == "http.response.start":
                if int(Headers(raw=message["headers"]).get("content-length", 0)) > _PIECE_BYTES:
                    started.append(message)
                else:
                    await send(message)
                return
            size = len(body)
            if size <= _PIECE_BYTES:
                await send_started()
                await send(message)
                return
            if started and (problem := self._too_much(caller.tenant, size)):
                refused = True
                await problem_response(problem, scope["path"])(scope, receive, send)
                return
            self.held_bytes[caller.tenant] += size
            try:
                await send_started()
                await _send_pieces(message, body, send)
            finally:
                self.held_bytes[caller.tenant] -= size
                self.held_bytes += Counter()  # forgets who has none

        await self._app(scope, receive, in_pieces)

    def _too_much(self, tenant: str, size: int) -> Unavailable | None:
        own, others = self.held_bytes[tenant], self.held_bytes.total() - self.held_bytes[tenant]
        # A single one of each tenant's goes out, however large.
        if own and (own + size > self._memory // _SHARE or own + others + size > self._memory):
            return Unavailable(
                f"{own:,} bytes of answers to you are still to be read, and this one has {size:,}; at most "
                f"{self._memory // _SHARE:,} may be, a quarter of REVLN_BODY_MEMORY_BYTES. Read them first, or ask "
                "for smaller pages."
            )
        return None


async def _send_pieces(message: Message, body: bytes, send: Send) -> None:
    """Hand on a piece when the one before it was taken: `send` waits for that."""
    view, more_body = memoryview(body), message.get("more_body", False)
    for start in range(0, max(len(view), 1), _PIECE_BYTES):
        piece = bytes(view[start : start + _PIECE_BYTES])
        more = more_body or start + _PIECE_BYTES < len(view)
        await send({"type": "http.response.body", "body": piece, "more_body": more})
