"""uvicorn's HTTP protocol with limits on what comes around a body, on answers that are not read, and on connections.

httptools keeps headers of any size, at any pace. Refusals are problems (RFC 9457), as those of the API are.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import struct
import termios
from array import array
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.problems import PROBLEM_TYPE, problem, problem_response
from revln.errors import Unavailable

__all__ = ["GuardedHttp"]

_HEAD_BYTES = 64 * 2**10  # a Last-Event-ID, a key and a filter in the query are some kilobytes
_HEAD_S = 30.0
_TAKE_S = 30.0
_TAKE_BYTES = 300_000  # at least, in that time, of an answer that waits to be read: 10 kB/s, as of a body
_BETWEEN_MARKS_BYTES = 48 * 2**10  # what has left the buffer from where we have to wait to where we may go on
_ALIVE = "/healthz"  # answered however many connect: a restart would not help


class GuardedHttp(HttpToolsProtocol):
    """Closes a connection that sends no whole head of a request in time, or that sends bytes which lead to nothing.

    What leads to something is the end of a head, a piece of a body, the end of a message. Headers, trailers and the
    extensions of chunks without end are none of these, and httptools would collect them until memory is gone. A body
    that is still on its way when its answer is given counts as the time before the next head: uvicorn would read on
    for as long as anything comes.

    And one that does not read its answer: looked at every 30 s from when something waits to be sent until nothing does.

    uvicorn's ``limit_concurrency`` is how many connections there may be; of twice as many each new one is closed.
    """

    _idle_bytes = 0
    _progress = False
    _timer: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None
    _unsent_bytes = 0  # at the last look
    _taken_bytes = 0  # since then, at least

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
        if self._sending is not None:
            self._sending.cancel()
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
        self._watch_sending()
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():  # no other request is being answered
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        self._taken_bytes += _BETWEEN_MARKS_BYTES
        super().resume_writing()

    def _watch_sending(self) -> None:
        if self._sending is None and self.transport.get_write_buffer_size():
            self._unsent_bytes, self._taken_bytes = self._not_taken_bytes(), 0
            self._sending = self.loop.call_later(_TAKE_S, self._look_at_sending)

    def _look_at_sending(self) -> None:
        self._sending = None
        unsent, before = self._not_taken_bytes(), self._unsent_bytes
        if self.flow.write_paused:
            late = self._taken_bytes + before - unsent < _TAKE_BYTES
        else:  # the rest of an answer; of one that goes on, such as a stream of events, there may be little to take
            over = self.cycle is None or self.cycle.response_complete
            late = over and self.transport.get_write_buffer_size() > 0 and unsent >= before
        if late:
            self._reset()
        else:
            self._watch_sending()

    def _reset(self) -> None:
        """Close at once. close() would wait for what nobody reads, and the kernel would keep what it has of it."""
        with (
            contextlib.suppress(OSError, AttributeError),
            socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as same,
        ):
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _not_taken_bytes(self) -> int:
        """Return what is in the server's buffer and in the kernel's, which may hold megabytes."""
        queued = array("i", [0])
        with contextlib.suppress(OSError, AttributeError):  # a transport without a socket, another system
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
        return self.transport.get_write_buffer_size() + queued[0]

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
            self._watch_sending()
            self.transport.close()
