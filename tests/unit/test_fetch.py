"""Guarded fetching, against real servers on loopback; nothing leaves this machine."""

from __future__ import annotations

import ipaddress
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revln.errors import FetchError, FetchRefused
from revln.fetch import FetchPolicy, UrlFetcher, address_refusal
from tests.hostile_urls import ADDRESSES, HOSTILE, SECRET, at_port, inside

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A real HTTP server; ``answers`` maps a path (without its query) to what is done with the request."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.connections = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                try:
                    outer.answers[self.path.partition("?")[0]](self)
                except OSError:  # the client has had enough
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Http(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def get_request(self) -> tuple[socket.socket, object]:
                connection, address = super().get_request()
                outer.connections += 1
                return connection, address

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that breaks off, as these tests have them

        self.http = Http(("127.0.0.1", 0), Handler)
        if context is not None:
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.port = self.http.server_port
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def url(self, path: str = "/picture", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def body(data: bytes, status: int = 200, **headers: str) -> Answer:
    named = {"Content-Length": str(len(data))} | {name.replace("_", "-"): value for name, value in headers.items()}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in named.items():
            if not (name == "Content-Length" and "Transfer-Encoding" in named):
                handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def redirect(to: str, status: int = 302) -> Answer:
    return body(b"", status, Location=to)


def stream(pieces: Iterator[bytes]) -> Answer:
    """No length; the body ends with the connection."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(piece)

    return answer


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def listening() -> Iterator[Server]:
    server = Server()
    server.answers["/"] = body(b"the crown jewels")
    yield server
    server.close()


@pytest.fixture
def canary(listening: Server) -> Iterator[Server]:
    """Nothing may ever connect to it."""
    yield listening
    assert listening.connections == 0


def fetcher(server: Server, resolve: Callable[[str, int], list[str]] | None = None, **policy: object) -> UrlFetcher:
    """One that may go to this server."""
    values: dict[str, object] = {"enabled": True, "ports": (server.port,), "allow_private": True} | policy
    return UrlFetcher(FetchPolicy(**values), resolve=resolve)  # type: ignore[arg-type]


def guarded(server: Server, resolve: Callable[[str, int], list[str]] | None = None) -> UrlFetcher:
    """One that may go to the server's port, but not to private addresses."""
    return fetcher(server, resolve, allow_private=False)


# --- what works --------------------------------------------------------------------------------------------------


def test_a_picture_is_fetched_with_the_headers_it_needs_and_no_others(server):
    server.answers["/a/picture"] = body(b"bytes")
    assert fetcher(server).get(server.url("/a/picture?w=1&h=2#part")) == b"bytes"
    ((path, headers),) = server.seen
    assert path == "/a/picture?w=1&h=2"
    assert set(headers) == {"host", "accept", "accept-encoding", "connection", "user-agent"}
    assert headers["host"] == f"127.0.0.1:{server.port}"


def test_letters_outside_ascii_are_encoded(server):
    server.answers["/stra%C3%9Fe%20x"] = body(b"bytes")
    assert fetcher(server).get(server.url("/straße%20x?q=ü")) == b"bytes"
    assert server.seen[0][0] == "/stra%C3%9Fe%20x?q=%C3%BC"


def test_chunked_and_unlimited_bodies_are_read(server):
    server.answers["/chunked"] = body(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", Transfer_Encoding="chunked")
    server.answers["/open"] = stream(iter([b"ab", b"cde"]))
    assert fetcher(server).get(server.url("/chunked")) == b"abcde"
    assert fetcher(server).get(server.url("/open")) == b"abcde"


def test_the_address_that_was_judged_is_dialled_and_the_name_is_still_sent(server):
    server.answers["/picture"] = body(b"bytes")
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])  # a rebinding server: the second question gets another answer
    asked = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    assert fetcher(server, resolve).get(server.url(host="Pictures.TEST.")) == b"bytes"
    assert asked == ["pictures.test"]
    assert server.seen[0][1]["host"] == f"pictures.test:{server.port}"


def test_the_next_address_is_dialled_when_the_first_is_dead(server):
    server.answers["/picture"] = body(b"bytes")
    assert fetcher(server, lambda *_: ["127.0.0.99", "127.0.0.1"]).get(server.url(host="pictures.test")) == b"bytes"


def test_redirects_are_followed_three_times_and_not_four(server):
    for hop in range(5):
        server.answers[f"/{hop}"] = redirect(f"{hop + 1}" if hop % 2 else f"/{hop + 1}")
    server.answers["/5"] = body(b"bytes")
    assert fetcher(server).get(server.url("/2")) == b"bytes"
    with pytest.raises(FetchRefused, match="more than 3 times"):
        fetcher(server).get(server.url("/1"))


def test_no_cookie_and_no_environment_goes_along(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.answers["/one"] = body(b"", 302, Location="/two", Set_Cookie="a=b")
    server.answers["/two"] = body(b"bytes")
    assert fetcher(server).get(server.url("/one")) == b"bytes"
    assert not {"cookie", "authorization"} & set(server.seen[1][1])


def test_many_threads_fetch_at_once(server):
    for number in range(8):
        server.answers[f"/{number}"] = body(b"%d" % number)
    one = fetcher(server)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda number: one.get(server.url(f"/{number % 8}")), range(40)))
    assert got == [b"%d" % (number % 8) for number in range(40)]


# --- what fails, and whether to try again ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "again"),
    [(500, True), (503, True), (429, True), (408, True), (404, False), (403, False), (204, False), (304, False)],
)
def test_a_status_says_whether_another_try_is_worth_it(server, status, again):
    server.answers["/picture"] = body(b"", status)
    with pytest.raises(FetchError, match=f"status {status}") as caught:
        fetcher(server).get(server.url(f"/picture?{SECRET}"))
    assert caught.value.retryable is again
    assert caught.value.code == "fetch_failed"
    assert SECRET not in caught.value.message


def test_a_body_over_the_limit_is_not_read(server):
    sent = []

    def endless() -> Iterator[bytes]:
        while True:
            sent.append(1)
            yield b"x" * 65_536

    server.answers["/said"] = body(b"x" * 100, Content_Length="1001")
    server.answers["/unsaid"] = stream(endless())
    server.answers["/exact"] = body(b"x" * 1_000)
    one = fetcher(server, max_bytes=1_000)
    assert len(one.get(server.url("/exact"))) == 1_000
    for path in ("/said", "/unsaid"):
        with pytest.raises(FetchError, match="more than 1,000 bytes") as caught:
            one.get(server.url(path))
        assert not caught.value.retryable


def test_a_length_that_no_memory_has_is_refused_unread(server):
    for length in ("9" * 30, "1" + "0" * 15):
        server.answers["/picture"] = body(b"x", Content_Length=length)
        with pytest.raises(FetchError, match=r"more than|could not be fetched"):
            fetcher(server).get(server.url())


def test_a_compressed_body_is_refused_unread(server):
    server.answers["/picture"] = body(b"x", Content_Encoding="gzip")
    with pytest.raises(FetchError, match="compressed"):
        fetcher(server).get(server.url())


def test_a_body_that_ends_early_is_a_failure_worth_another_try(server):
    def short(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        body(b"half", Content_Length="8")(handler)

    server.answers["/picture"] = short
    with pytest.raises(FetchError) as caught:
        fetcher(server).get(server.url())
    assert caught.value.retryable


@pytest.mark.parametrize("part", ["headers", "body", "interim"])
def test_a_server_that_trickles_is_left_when_the_time_is_up(server, part):
    stop = threading.Event()

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" if part != "interim" else b"")
        handler.wfile.write(b"\r\n" if part == "body" else b"")
        piece = {"headers": b"X-A: b\r\n", "body": b"x", "interim": b"HTTP/1.1 102 Processing\r\n\r\n"}[part]
        while not stop.wait(0.02):
            handler.wfile.write(piece)

    server.answers["/picture"] = trickle
    start = time.monotonic()
    with pytest.raises(FetchError, match=r"within 0\.3 s") as caught:
        fetcher(server, timeout_s=0.3).get(server.url())
    stop.set()
    assert caught.value.retryable
    assert time.monotonic() - start < 5


def test_redirects_share_one_deadline(server):
    waiting = threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        waiting.wait(0.2)
        redirect("/picture")(handler)

    server.answers["/picture"] = slow
    with pytest.raises(FetchError, match=r"within 0\.3 s"):
        fetcher(server, timeout_s=0.3).get(server.url())
    assert len(server.seen) == 2


def test_endless_interim_answers_are_cut_off_by_their_bytes(server):
    def interim(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        while True:
            handler.wfile.write(b"HTTP/1.1 102 Processing\r\nX-A: " + b"b" * 4_000 + b"\r\n\r\n")

    server.answers["/picture"] = interim
    with pytest.raises(FetchError, match="could not be fetched"):
        fetcher(server, max_bytes=1_000, timeout_s=5).get(server.url())


def test_endless_headers_are_cut_off(server):
    def headers(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            handler.wfile.write(b"X-A: " + b"b" * 60_000 + b"\r\n")

    server.answers["/picture"] = headers
    with pytest.raises(FetchError, match="could not be fetched"):
        fetcher(server).get(server.url())


@pytest.mark.parametrize(
    "answer", [b"", b"not http at all\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"\0" * 100]
)
def test_a_server_that_does_not_speak_http_is_a_fetch_error(server, answer):
    def speak(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.wfile.write(answer)

    server.answers["/picture"] = speak
    with pytest.raises(FetchError) as caught:
        fetcher(server).get(server.url())
    assert not isinstance(caught.value, FetchRefused)


def test_a_closed_port_and_an_unknown_name_are_worth_another_try(server):
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    server.close()
    for one in (fetcher(server), fetcher(server, unknown), fetcher(server, lambda *_: [])):
        with pytest.raises(FetchError) as caught:
            one.get(server.url(f"/?{SECRET}", host="pictures.test" if one._resolve is not None else "127.0.0.1"))
        assert caught.value.retryable
        assert SECRET not in caught.value.message


def test_a_resolver_that_hangs_does_not_hold_the_fetch(server):
    stop = threading.Event()

    def hang(host: str, port: int) -> list[str]:
        stop.wait(30)
        return ["127.0.0.1"]

    start = time.monotonic()
    with pytest.raises(FetchError, match="not resolved in time"):
        fetcher(server, hang, timeout_s=0.2).get(server.url(host="pictures.test"))
    stop.set()
    assert time.monotonic() - start < 5
    assert server.connections == 0


# --- what is refused ---------------------------------------------------------------------------------------------


def test_fetching_is_off_unless_it_was_turned_on(canary):
    with pytest.raises(FetchRefused, match="REVLN_FETCH_URLS=true"):
        UrlFetcher(FetchPolicy()).get(canary.url("/"))


@pytest.mark.parametrize("url", HOSTILE, ids=lambda url: url.encode("unicode_escape").decode()[:50])
def test_a_hostile_url_is_refused_without_a_connection(canary, url):
    with pytest.raises(FetchRefused) as caught:
        guarded(canary, inside).get(at_port(url, canary.port))
    assert not caught.value.retryable
    assert SECRET not in caught.value.message


def test_a_name_that_is_bound_again_between_two_hops_is_refused(canary, server):
    server.answers["/picture"] = redirect(canary.url("/", host="pictures.test"))
    answers = iter([["127.0.0.1"], ["169.254.169.254"]])
    one = fetcher(server, lambda *_: next(answers), ports=(server.port, canary.port))
    with pytest.raises(FetchRefused, match="link-local"):
        one.get(server.url(host="pictures.test"))
    assert len(server.seen) == 1


# Those of them that are whole URLs and that a header can carry.
HOSTILE_TARGETS = [url for url in HOSTILE if url.isprintable() and re.match(r"[a-zA-Z]+://[^/]", url)]


@pytest.mark.parametrize("url", HOSTILE_TARGETS, ids=lambda url: url[:50])
def test_a_redirect_to_a_hostile_url_is_refused_without_a_connection(canary, server, url):
    location = at_port(url, canary.port).encode()
    answer = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"
    server.answers["/picture"] = lambda handler: handler.wfile.write(answer)

    class FirstHopFree(UrlFetcher):
        """Lets the first hop through as if it were public; every later one meets the real rules."""

        def _addresses(self, target, deadline):
            return ["127.0.0.1"] if target.host == "pictures.test" else super()._addresses(target, deadline)

    one = FirstHopFree(FetchPolicy(enabled=True, ports=(server.port, canary.port)), resolve=inside)
    with pytest.raises(FetchRefused):
        one.get(server.url(host="pictures.test"))
    assert len(server.seen) == 1


@pytest.mark.parametrize("answer", ADDRESSES, ids=" ".join)
def test_a_name_that_leads_inside_is_refused_whatever_else_it_leads_to(canary, answer):
    with pytest.raises(FetchRefused, match="leads to an address") as caught:
        guarded(canary, lambda *_: answer).get(canary.url("/", host="innocent.example"))
    assert not any(address in caught.value.message for address in answer)  # no map of the inside


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("user@127.0.0.1", "user name"),
        (f"user:{SECRET}@127.0.0.1", "user name"),
        ("@127.0.0.1", "user name"),
        ("127.1", "odd spelling"),
        ("2130706433", "odd spelling"),
        ("0x7f.0.0.1", "odd spelling"),
        ("127.0.0.0x1", "odd spelling"),
        ("127.0.0.01", "odd spelling"),
        ("[127.0.0.1]x", "malformed"),
        ("[::1]x", "malformed"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_even_in_a_closed_network(canary, host, words):
    with pytest.raises(FetchRefused, match=words) as caught:
        fetcher(canary).get(canary.url("/", host=host))
    assert SECRET not in caught.value.message


@pytest.mark.parametrize("port", [22, 25, 3306, 6379, 8080])
def test_another_port_is_refused(port):
    with pytest.raises(FetchRefused, match="only 80, 443 are allowed"):
        UrlFetcher(FetchPolicy(enabled=True)).get(f"http://example.com:{port}/")


REFUSED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.1.2.3",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "100.100.100.200",
    "168.63.129.16",
    "::",
    "::1",
    "::ffff:8.8.8.8",
    "::8.8.8.8",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:808:808::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "2001:0:4136:e378::1",
]
ALLOWED = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.1",
    "172.15.0.1",
    "172.32.0.1",
    "192.167.1.1",
    "223.255.255.254",
    "2606:4700::1111",
    "2a00:1450:4001::200e",
    "2001:4860:4860::8888",
    "2400:cb00::1",
]


@pytest.mark.parametrize("address", REFUSED)
def test_no_address_inside_any_network_is_dialled(address):
    assert address_refusal(ipaddress.ip_address(address)) is not None


@pytest.mark.parametrize("address", ALLOWED)
def test_a_public_address_is_dialled(address):
    assert address_refusal(ipaddress.ip_address(address)) is None


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "fe80::1", "::ffff:127.0.0.1", "224.0.0.1", "fd00:ec2::254", "0.0.0.0"]
)
def test_a_closed_network_still_has_no_way_to_metadata_or_disguises(address):
    assert address_refusal(ipaddress.ip_address(address), allow_private=True) is not None
    assert address_refusal(ipaddress.ip_address("10.0.0.1"), allow_private=True) is None


@given(st.ip_addresses())
def test_whatever_python_calls_not_global_is_refused(address):
    if not address.is_global or address.is_multicast:
        assert address_refusal(address) is not None


# --- TLS ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for pictures.test, made for this run."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=pictures.test"
    extension = ["-addext", "subjectAltName=DNS:pictures.test"]
    subprocess.run(
        [openssl, *command.split(), *extension, "-keyout", key, "-out", cert], check=True, capture_output=True
    )
    return cert, key


@pytest.fixture
def tls_server(certificate: tuple[Path, Path]) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = Server(context)
    server.answers["/picture"] = body(b"bytes")
    yield server
    server.close()


def test_the_certificate_is_checked_for_the_name_not_for_the_address(tls_server, certificate):
    policy = FetchPolicy(enabled=True, ports=(tls_server.port,), allow_private=True)
    trusting = ssl.create_default_context(cafile=certificate[0])
    one = UrlFetcher(policy, resolve=lambda *_: ["127.0.0.1"], ssl_context=trusting)
    assert one.get(tls_server.url(host="pictures.test", scheme="https")) == b"bytes"
    assert tls_server.seen[0][1]["host"] == f"pictures.test:{tls_server.port}"
    for host in ("other.test", "127.0.0.1"):
        with pytest.raises(FetchError, match="certificate") as caught:
            one.get(tls_server.url(host=host, scheme="https"))
        assert not caught.value.retryable


def test_a_certificate_that_nobody_signed_is_not_trusted(tls_server):
    policy = FetchPolicy(enabled=True, ports=(tls_server.port,), allow_private=True)
    with pytest.raises(FetchError, match="certificate"):
        UrlFetcher(policy, resolve=lambda *_: ["127.0.0.1"]).get(tls_server.url(host="pictures.test", scheme="https"))
    assert tls_server.seen == []
