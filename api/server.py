"""uvicorn's HTTP protocol with limits on what comes before and after a body, and on how many connections there are.

httptools keeps headers of any size, at any pace. Refusals are problems (RFC 9457), as those of the API are.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.problems import PROBLEM_TYPE, problem, problem_response
from revln.errors import Unavailable

__all__ = ["GuardedHttp"]

_HEAD_BYTES = 64 * 2**10  # a Last-Event-ID, a key and a filter in the query are some kilobytes
_HEAD_S = 30.0
_ALIVE = "/healthz"  # answered however many connect: a restart would not help


class GuardedHttp(HttpToolsProtocol):
    """Closes a connection that sends no whole head of a request in time, or that sends bytes which lead to nothing.

    What leads to something is the end of a head, a piece of a body, the end of a message. Headers, trailers and the
    extensions of chunks without end are none of these, and httptools would collect them until memory is gone. A body
    that is still on its way when its answer is given counts as the time before the next head: uvicorn would read on
    for as long as anything comes.

    uvicorn's ``limit_concurrency`` is how many connections there may be; of twice as many each new one is closed.
    """

    _idle_bytes = 0
    _progress = False
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn's own refusal has no type and no Retry-After.
        self._most, self.limit_concurrency = self.limit_concurrency, None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()
        if self._crowded(2):
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._progress = False
        super().data_received(data)
        self._idle_bytes = 0 if self._progress else self._idle_bytes + len(data)
        if self._idle_bytes > _HEAD_BYTES:
            self._refuse(
                431, "header_too_large", f"A request's head may have {_HEAD_BYTES:,} bytes. Send fewer headers."
            )

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "bad_request", f"{msg} What was sent is no HTTP/1.1 request.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._progress = True
        self._head_came()
        if [name for name, _ in self.headers].count(b"host") > 1:
            # Two servers in a row may each believe another one.
            self._refuse(400, "bad_request", "A request has one Host header; this one had more. Send one.")
            return
        self.app = self._answer_busy if self._crowded(1) else self.config.loaded_app
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._progress = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._progress = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():  # no other request is being answered
            self._await_head()

    def _crowded(self, times: int) -> bool:
        return self._most is not None and len(self.connections) > times * self._most

    async def _answer_busy(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == _ALIVE:
            await self.config.loaded_app(scope, receive, send)
            return
        most = f"More than {self._most:,} connections are open (REVLN_MAX_CONNECTIONS). Ask again soon."
        response = problem_response(Unavailable(most), scope["path"])
        response.headers["Connection"] = "close"
        await response(scope, receive, send)

    def _await_head(self) -> None:
        if self._timer is None:
            late = f"No whole head of a request came within {_HEAD_S:g} s. Connect again."
            self._timer = self.loop.call_later(_HEAD_S, self._refuse, 408, "request_timeout", late)

    def _head_came(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, code: str, detail: str) -> None:
        if not self.transport.is_closing():
            title = HTTPStatus(status).phrase
            body = json.dumps(problem(status, code, title, detail)).encode()
            head = f"HTTP/1.1 {status} {title}\r\nContent-Type: {PROBLEM_TYPE}\r\n"
            self.transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            self.transport.close()
