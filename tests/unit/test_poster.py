"""Guarded posting, against a real server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from threading import Event

import pytest

from revln.errors import FetchError, FetchRefused
from revln.fetch import UrlPoster, postable, seconds_asked
from tests.hostile_urls import ADDRESSES, HOSTILE, SECRET, at_port, inside
from tests.receivers import Receiver, running_receiver, status


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as running:
        yield running


@pytest.fixture(scope="module")
def canary() -> Iterator[Receiver]:
    """Nothing may ever connect to it."""
    with running_receiver() as running:
        yield running


def poster(timeout_s: float = 10.0, allow_private: bool = True, addresses: tuple[str, ...] = ()) -> UrlPoster:
    return UrlPoster(timeout_s, allow_private, resolve=(lambda *_: addresses) if addresses else None)


def test_the_body_and_the_headers_arrive_as_they_are_and_no_others_go_along(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    answer = poster().post(receiver.url("/hook?a=1"), b'{"a": 1}', {"webhook-id": "msg_1"})
    assert answer.status == 204
    (seen,) = receiver.seen
    assert (seen.path, seen.body, seen.id) == ("/hook?a=1", b'{"a": 1}', "msg_1")
    assert set(seen.headers) == {
        "host", "content-length", "accept-encoding", "connection", "user-agent", "webhook-id",
    }  # fmt: skip


def test_a_redirect_is_an_answer_and_is_not_followed(receiver: Receiver) -> None:
    receiver.answers["/hook"] = status(307, Location=receiver.url("/other"))
    assert poster().post(receiver.url(), b"", {}).status == 307
    assert [each.path for each in receiver.seen] == ["/hook"]


def test_an_answer_carries_when_it_would_be_asked_again(receiver: Receiver) -> None:
    receiver.answers["/hook"] = status(503, Retry_After="120")
    answer = poster().post(receiver.url(), b"", {})
    assert (answer.status, seconds_asked(answer.retry_after)) == (503, 120.0)


@pytest.mark.parametrize("value", ["", "soon", "-5", "²", "1e9", "9" * 400, "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_retry_after_that_says_nothing_is_none(value: str) -> None:
    assert seconds_asked(value) == 0.0


def test_a_body_that_never_ends_does_not_keep_the_poster(receiver: Receiver) -> None:
    over = Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.end_headers()
        while not over.wait(0.01):
            handler.wfile.write(b"x" * 65536)

    receiver.answers["/hook"] = endless
    try:
        assert poster(timeout_s=60.0).post(receiver.url(), b"", {}).status == 200
    finally:
        over.set()


def test_headers_that_trickle_end_with_the_deadline(receiver: Receiver) -> None:
    over = Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        while not over.wait(0.05):
            handler.wfile.write(b"H")

    receiver.answers["/hook"] = slow
    try:
        with pytest.raises(FetchError, match=r"did not answer within 0.5 s"):
            poster(timeout_s=0.5).post(receiver.url(), b"", {})
    finally:
        over.set()


def test_a_server_that_is_not_there_is_a_failure_that_names_no_path(receiver: Receiver) -> None:
    receiver.close()
    with pytest.raises(FetchError, match="could not be reached") as caught:
        poster().post(receiver.url("/secret-path?token=hunter2"), b"", {})
    assert "secret-path" not in caught.value.message
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("addresses", ADDRESSES, ids=" ".join)
def test_a_name_that_leads_to_a_private_address_is_never_dialled(canary: Receiver, addresses: list[str]) -> None:
    with pytest.raises(FetchRefused, match="leads to an address"):
        poster(allow_private=False, addresses=tuple(addresses)).post(canary.url(host="hooks.test"), b"", {})
    assert canary.connections == 0


@pytest.mark.parametrize("url", HOSTILE, ids=lambda url: url.encode("unicode_escape").decode()[:50])
def test_a_hostile_url_is_refused_without_a_connection(canary: Receiver, url: str) -> None:
    with pytest.raises(FetchRefused) as caught:
        UrlPoster(10.0, False, resolve=inside).post(at_port(url, canary.port), b"", {})
    assert not caught.value.retryable
    assert SECRET not in caught.value.message
    assert canary.connections == 0


def test_the_address_that_was_judged_is_the_one_that_is_dialled(receiver: Receiver) -> None:
    answers = iter([("127.0.0.1",)])  # a second lookup would find nothing
    sender = UrlPoster(10.0, True, resolve=lambda *_: next(answers))
    assert sender.post(receiver.url(host="hooks.test"), b"", {}).status == 204
    assert receiver.seen[0].headers["host"].startswith("hooks.test:")


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://127.0.0.1/hook", "loopback"),
        ("http://[::1]/hook", "loopback"),
        ("http://169.254.169.254/latest", "link-local"),
        ("http://2130706433/", "odd spelling"),
        ("https://example.org:25/", "port is 25; only 80, 443, 1024 to 65535"),
        ("ftp://example.org/", "scheme"),
        ("https://user:pw@example.org/", "user name"),
        ("https://exa mple.org/", "space"),
        ("", "scheme"),
    ],
)
def test_urls_that_are_refused_without_asking_for_their_names(url: str, what: str) -> None:
    with pytest.raises(FetchRefused, match=what):
        postable(url, allow_private=False)


def test_a_public_url_is_fine_on_the_ports_of_the_web_and_on_high_ones() -> None:
    assert postable("https://example.org/hook", allow_private=False).port == 443
    assert postable("https://example.org:8443/hook", allow_private=False).port == 8443
    assert postable("http://127.0.0.1:5000/hook", allow_private=True).shown == "http://127.0.0.1:5000"
