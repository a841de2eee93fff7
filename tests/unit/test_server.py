"""A server that is sent heads without end, over real sockets."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from api import server as api_server
from tests.stack import DEADLINE_S, wait_until


async def app(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def serving(app: Any, **config: Any) -> Iterator[int]:
    """An application behind the guarded protocol; its port."""
    made = uvicorn.Config(
        app, port=0, http=api_server.GuardedHttp, ws="none", lifespan="off", log_config=None, **config
    )
    server = uvicorn.Server(made)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, what="the server")
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(app) as port:
        yield port


def said(port: int, *pieces: bytes) -> bytes:
    """What comes back until the server closes, or has answered in whole."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            while not _whole(answer) and (more := connection.recv(65_536)):
                answer += more
        except ConnectionError:
            pass  # closed while we were still sending
        return answer


def _whole(answer: bytes) -> bool:
    head, end, body = answer.lower().partition(b"\r\n\r\n")
    length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return bool(end) and len(body) >= int(length)


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
    monkeypatch.setattr(api_server, "_HEAD_S", 0.05)
    assert said(port, begun).startswith(b"HTTP/1.1 408")


def test_a_refusal_is_a_problem(port: int) -> None:
    for sent, code in ((b"\x16\x03\x01\r\n\r\n", "bad_request"), (b"GET /" + b"x" * 70_000, "header_too_large")):
        head, _, body = said(port, sent).partition(b"\r\n\r\n")
        assert b"Content-Type: application/problem+json" in head
        assert json.loads(body)["code"] == code


TWO_WAYS = {
    "a length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "a list of lengths": b"Content-Length: 5, 5\r\n\r\nabcde",
    "a sign": b"Content-Length: +5\r\n\r\nabcde",
    "less than nothing": b"Content-Length: -1\r\n\r\n",
    "a length of 23 digits": b"Content-Length: 99999999999999999999999\r\n\r\n",
    "a chunk of 21 digits": b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffffff\r\n",
    "another coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks and another coding": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a blank before the colon": b"Content-Length : 5\r\n\r\nabcde",
    "a folded header": b"X: a\r\n Content-Length: 5\r\n\r\nabcde",
    "NUL in a header": b"X: a\0b\r\n\r\n",
    "more than it says": b"Content-Length: 1\r\n\r\nabcdef\r\n\r\n",
}


@pytest.mark.parametrize("sent", TWO_WAYS.values(), ids=TWO_WAYS)
def test_what_a_proxy_before_us_could_read_otherwise_is_refused(port: int, sent: bytes) -> None:
    head, _, body = said(port, b"POST / HTTP/1.1\r\nHost: a\r\n" + sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["code"] == "bad_request"


async def deaf(scope: Any, receive: Any, send: Any) -> None:
    """Answers without a look at the body."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


@pytest.mark.parametrize("more", [b"x", b"\r\n"], ids=["the body", "line ends"])
def test_what_trickles_in_after_the_answer_is_not_waited_for(more: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_server, "_HEAD_S", 0.2)
    length = b"1000000" if more == b"x" else b"0"
    with serving(deaf) as port, socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + length + b"\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 401")

        def closed() -> bool:
            try:
                connection.sendall(more)
            except ConnectionError:
                return True
            return False

        wait_until(closed, what="the end of the connection")


def large(size: int) -> Any:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        head = [(b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": bytes(size)})

    return answer


@pytest.mark.parametrize("size", [64 * 2**20, 4 * 2**20], ids=["in the server", "mostly in the kernel"])
@pytest.mark.parametrize("ending", [b"", b"Connection: close\r\n"], ids=["keep-alive", "close"])
def test_a_connection_that_reads_nothing_is_closed(size: int, ending: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_server, "_TAKE_S", 0.2)
    with serving(large(size)) as port, socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + ending + b"\r\n")
        ended = select.poll()
        ended.register(connection, select.POLLHUP | select.POLLERR)
        assert ended.poll(DEADLINE_S * 1_000), "the end of the connection"


def test_who_reads_as_slowly_as_is_allowed_is_given_the_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_server, "_TAKE_S", 0.1)
    monkeypatch.setattr(api_server, "_TAKE_BYTES", 1)
    size, got, paused = 8 * 2**20, 0, threading.Event()
    with serving(large(size)) as port, socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        while got < size and (piece := connection.recv(262_144)):
            got += len(piece)
            paused.wait(0.005)
    assert got >= size


def test_a_request_that_takes_its_time_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_server, "_HEAD_S", 0.1)

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.3)
        await app(scope, receive, send)

    two = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2  # the second is held back until the first was answered
    with serving(slow) as port, socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
        connection.sendall(two)
        answers = b""
        while answers.count(b"ok") < 2:
            answers += (more := connection.recv(65_536))
            assert more
    assert answers.count(b"HTTP/1.1 200") == 2


def test_more_connections_than_there_may_be_are_told_to_come_again() -> None:
    request = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n"
    with serving(app, limit_concurrency=3) as port:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        wait_until(lambda: said(port, request % b"/x").startswith(b"HTTP/1.1 503"), what="a refusal")
        head, _, body = said(port, request % b"/x").partition(b"\r\n\r\n")
        assert b"retry-after: 2" in head
        assert "REVLN_MAX_CONNECTIONS" in json.loads(body)["detail"]
        assert said(port, request % b"/healthz").startswith(b"HTTP/1.1 200")
        more = [socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) for _ in range(4)]
        assert more[-1].recv(1) == b"", "above twice as many each is closed at once"
        for one in (*idle, *more):
            one.close()
        wait_until(lambda: said(port, request % b"/x").startswith(b"HTTP/1.1 200"), what="room again")


def test_two_hosts_are_refused_and_one_is_not(port: int) -> None:
    for names in ((b"Host", b"Host"), (b"Host", b"host")):
        heads = b"".join(name + b": a\r\n" for name in names)
        assert said(port, b"GET / HTTP/1.1\r\n" + heads + b"\r\n").startswith(b"HTTP/1.1 400 ")
    assert said(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").startswith(b"HTTP/1.1 200 ")
