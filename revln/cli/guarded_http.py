"""uvicorn's HTTP protocol with limits on what comes before a body: httptools keeps headers of any size, at any pace."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["GuardedHttp"]

_HEAD_BYTES = 64 * 2**10  # a Last-Event-ID, a key and a filter in the query are some kilobytes
_HEAD_S = 30.0
_REFUSED = b"HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class GuardedHttp(HttpToolsProtocol):
    """Closes a connection that sends no whole head of a request in time, or that sends bytes which lead to nothing.

    What leads to something is the end of a head, a piece of a body, the end of a message. Headers, trailers and the
    extensions of chunks without end are none of these, and httptools would collect them until memory is gone.
    """

    _idle_bytes = 0
    _progress = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._progress = False
        super().data_received(data)
        self._idle_bytes = 0 if self._progress else self._idle_bytes + len(data)
        if self._idle_bytes > _HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._progress = True
        self._head_came()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progress = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._progress = True
        super().on_message_complete()

    def _await_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(_HEAD_S, self._refuse, b"408 Request Timeout")

    def _head_came(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(_REFUSED % status)
            self.transport.close()
