"""A server that is sent heads without end, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from revln.cli import guarded_http
from tests.stack import DEADLINE_S, wait_until


async def app(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    config = uvicorn.Config(app, port=0, http=guarded_http.GuardedHttp, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, what="the server")
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def said(port: int, *pieces: bytes) -> bytes:
    """What comes back until the server closes, or has answered with 200."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            while b"ok" not in answer and (more := connection.recv(65_536)):
                answer += more
        except ConnectionError:
            pass  # closed while we were still sending
        return answer


def test_a_request_is_answered_and_a_large_body_is_no_head(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + bytes(65_536) + b"\r\n"
    assert said(port, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 8_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert said(port, head, *[chunk] * 20, b"0\r\n\r\n").startswith(b"HTTP/1.1 200")


BODY = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"x" * 65_536),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"X: x\r\n" * 10_000),
        (b"GET /", b"x" * 65_536),
        (BODY + b"0\r\n", b"X: x\r\n" * 10_000),
        (BODY + b"1;", b"x" * 65_536),
    ],
    ids=["one header", "many headers", "a path", "trailers", "a chunk's extension"],
)
def test_what_has_no_end_is_cut_off(port: int, begin: bytes, more: bytes) -> None:
    answer = said(port, begin, *[more] * 200)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")), answer


@pytest.mark.parametrize("begun", [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nHost: a\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(port: int, begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_http, "_HEAD_S", 0.05)
    assert said(port, begun).startswith(b"HTTP/1.1 408")
