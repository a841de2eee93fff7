"""Bodies that are too large, too slow or too many, over real sockets."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from api.limits import LimitBody
from revln.settings import Settings
from tests.stack import DEADLINE_S, wait_until
from tests.unit.test_server import app, said, serving

CHUNKED = b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"


@contextmanager
def limited(pace: tuple[float, int] = (30.0, 10_000), **settings: Any) -> Iterator[tuple[int, LimitBody]]:
    """``pace``: how many seconds are waited for a body, and how many bytes give it one more."""
    guard = LimitBody(app, Settings(**settings), *pace)
    with serving(guard) as port:
        yield port, guard


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def problem(answer: bytes, status: int, code: str) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    told = json.loads(body)
    assert (told["status"], told["code"]) == (status, code)
    return str(told["detail"])


def test_a_body_that_trickles_is_not_waited_for() -> None:
    with limited(pace=(0.1, 10_000)) as (port, guard):
        told = problem(said(port, CHUNKED % b"/x" + chunk(b"[1")), 408, "body_too_slow")
        assert told.startswith("2 bytes of the body came in 0 s")
        head = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
        problem(said(port, head + b"a"), 408, "body_too_slow")
        assert guard.held_bytes == 0


def test_a_body_has_more_time_the_more_of_it_has_come() -> None:
    with (
        limited(pace=(0.05, 10)) as (port, _),
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection,
    ):
        connection.sendall(CHUNKED % b"/x" + chunk(b"x" * 10_000))
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):  # 1,000 s are waited
            connection.recv(1)
        connection.settimeout(DEADLINE_S)
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("values", "fits"),
    [(b"[],", 2_500_000), (b"{},", 1_200_000), (b'{"":0},', 1_000_000), (b"0.5,", 5_500_000), (b'"ab",', 2_500_000)],
    ids=["lists", "objects", "objects of a field", "numbers", "texts"],
)
def test_a_body_of_too_many_values_is_413_before_it_is_parsed(values: bytes, fits: int) -> None:
    """Of 25 MB as they are sent; as many as fit are let through."""
    piece = values * (65_536 // len(values))
    pieces = [CHUNKED % b"/x", *[chunk(piece)] * (25 * 2**20 // len(piece)), b"0\r\n\r\n"]
    with limited(body_memory_bytes=2**30) as (port, guard):
        told = problem(said(port, *pieces), 413, "payload_too_large")
        assert "REVLN_BODY_MEMORY_BYTES" in told
        assert "268,435,456" in told
        assert guard.held_bytes == 0
        few = [CHUNKED % b"/x", *[chunk(piece)] * int(fits * 0.9 * len(values) / len(piece)), b"0\r\n\r\n"]
        assert said(port, *few).startswith(b"HTTP/1.1 200")


def test_an_endless_body_is_413_once_it_is_too_large() -> None:
    pieces = [CHUNKED % b"/x", *[chunk(bytes(2**20))] * 100, b"0\r\n\r\n"]
    with limited() as (port, guard):
        assert "26214400" in problem(said(port, *pieces), 413, "payload_too_large")
        assert guard.held_bytes == 0


def test_bodies_that_together_take_too_much_are_told_to_come_again() -> None:
    with limited(body_memory_bytes=2**20) as (port, guard):
        open_ones = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
        for one in open_ones:
            one.sendall(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n" + bytes(250_000))
        wait_until(lambda: guard.held_bytes == 1_000_000, what="four bodies")
        one_more = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)
        answer = said(port, one_more)
        assert "1,048,576 bytes (REVLN_BODY_MEMORY_BYTES)" in problem(answer, 503, "unavailable")
        assert b"retry-after: 2" in answer
        # A manifest goes to the blob store as it comes, and is not held.
        assert said(port, one_more.replace(b"/x", b"/v1/manifests", 1)).startswith(b"HTTP/1.1 200")
        for one in open_ones:
            one.close()
        wait_until(lambda: guard.held_bytes == 0, what="their end")
        assert said(port, one_more).startswith(b"HTTP/1.1 200")


def sent_as(coding: str, body: bytes, path: bytes = b"/x") -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Encoding: %s\r\n"
    return head % (path, coding.encode()) + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def echo(scope: Any, receive: Any, send: Any) -> None:
    assert not {b"content-encoding", b"content-length"} & {name for name, _ in scope["headers"]}
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def test_a_gzip_body_is_read_of_one_member_or_several() -> None:
    body = json.dumps(list(range(200_000))).encode()
    half = len(body) // 2
    with serving(LimitBody(echo, Settings())) as port:
        for coding, encoded in (
            ("gzip", gzip.compress(body)),
            ("x-gzip, identity", gzip.compress(body)),
            ("gzip", gzip.compress(body[:half]) + gzip.compress(body[half:])),
            ("gzip", gzip.compress(body, 0)),
        ):
            assert said(port, sent_as(coding, encoded)).partition(b"\r\n\r\n")[2] == body
        assert said(port, sent_as("gzip", b"")).endswith(b"\r\n\r\n")


@pytest.mark.parametrize("coding", ["br", "deflate", "zstd", "gzip, gzip", "gzip;q=1", "é".encode().decode("latin-1")])
def test_another_encoding_is_415_whatever_the_body_is(coding: str) -> None:
    with limited() as (port, _):
        told = problem(said(port, sent_as(coding, b"{}")), 415, "unsupported_media_type")
        assert "gzip" in told


@pytest.mark.parametrize(
    "body",
    [b"{}", gzip.compress(b"{}")[:-3], gzip.compress(b"{}" * 999)[:20], gzip.compress(b"{}") + b"more"],
    ids=["none", "cut", "cut early", "more"],  # not the bytes, which hold the time
)
def test_what_is_no_gzip_is_400(body: bytes) -> None:
    with limited() as (port, guard):
        problem(said(port, sent_as("gzip", body)), 400, "malformed_encoding")
        assert guard.held_bytes == 0


@pytest.mark.parametrize("path", [b"/x", b"/v1/manifests"])
def test_a_bomb_is_told_while_it_is_unpacked(path: bytes) -> None:
    bomb = gzip.compress(bytes(100 * 2**20))
    with limited(max_body_bytes=2**20, max_manifest_bytes=2**20) as (port, guard):
        assert "1048576" in problem(said(port, sent_as("gzip", bomb, path)), 413, "payload_too_large")
        assert guard.held_bytes == 0
    with limited() as (port, guard):
        many = gzip.compress(b"[" + b"[]," * 8_000_000 + b"0]")
        problem(said(port, sent_as("gzip", many)), 413, "payload_too_large")
        assert guard.held_bytes == 0
