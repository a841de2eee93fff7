"""The client against a scripted HTTP server: errors by code, safe repetition, paging, events."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from revln import errors
from revln.client import RevlnClient
from revln.client_wire import ApiError, Event, sse_events
from revln.errors import SettingsError

JOB = {"id": "j1", "kind": "embed", "status": "succeeded", "done": True, "counts": {"total": 1}}


class Script:
    """Answers requests in order; ``None`` hangs up without an answer. Keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes] | None] = []
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                script.requests.append((self.command, self.path, dict(self.headers), body))
                answer = script.answers.pop(0)
                if answer is None:
                    self.connection.close()
                    self.close_connection = True
                    return
                status, headers, content = answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = _answer

            def log_message(self, *_: Any) -> None: ...

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (OSError, ValueError):  # we hung up
                    self.close_connection = True

            def finish(self) -> None:
                try:
                    super().finish()
                except (OSError, ValueError):
                    return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def will(self, status: int, body: Any, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.append((status, named, body if isinstance(body, bytes) else json.dumps(body).encode()))

    def will_hang_up(self) -> None:
        self.answers.append(None)

    def refuse(self, status: int, code: str, **more: Any) -> None:
        self.will(status, {"status": status, "code": code, "detail": f"about {code}", **more})


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    thread = threading.Thread(target=script.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield script
    script.server.shutdown()
    thread.join()
    script.server.server_close()


@pytest.fixture
def client(script: Script) -> Iterator[RevlnClient]:
    with RevlnClient(script.url, "secret", retry_for_s=5) as client:
        yield client


def test_a_submission_carries_key_token_wait_and_only_the_options_given(script: Script, client: RevlnClient) -> None:
    script.will(202, JOB)
    assert client.submit("embed", {"items": []}, wait_s=7, model=None, priority="bulk") == JOB
    method, path, headers, body = script.requests[0]
    assert (method, path) == ("POST", "/v1/jobs")
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Prefer"] == "wait=7"
    assert headers["Idempotency-Key"]
    assert json.loads(body) == {"kind": "embed", "input": {"items": []}, "priority": "bulk"}


def test_a_submission_whose_answer_was_lost_is_repeated_under_the_same_key(script: Script, client: RevlnClient) -> None:
    script.will_hang_up()
    script.refuse(503, "unavailable")
    script.will(202, JOB)
    assert client.submit("embed", {"items": []})["id"] == "j1"
    assert len({request[2]["Idempotency-Key"] for request in script.requests}) == 1
    assert len(script.requests) == 3


def test_retry_after_is_honoured(script: Script, client: RevlnClient, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("revln.client.time.sleep", slept.append)
    script.will(429, {"code": "too_busy", "detail": "later"}, Retry_After="3")
    script.will(202, JOB)
    client.submit("embed", {"items": []})
    assert slept == [3.0]


def test_a_retry_after_beyond_our_patience_is_an_error_at_once(script: Script, client: RevlnClient) -> None:
    script.will(429, {"code": "too_busy", "detail": "in an hour"}, Retry_After="3600")
    with pytest.raises(errors.TooBusy, match="in an hour") as caught:
        client.submit("embed", {"items": []})
    assert caught.value.code == "too_busy"


def test_a_server_that_is_not_there_is_unavailable(script: Script) -> None:
    with (
        RevlnClient("http://127.0.0.1:1", retry_for_s=0.3) as client,
        pytest.raises(errors.Unavailable, match=r":1 does"),
    ):
        client.models()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "not_found", errors.NotFound),
        (409, "conflict", errors.Conflict),
        (401, "unauthorized", errors.Unauthorized),
        (422, "idempotency_mismatch", errors.IdempotencyMismatch),
        (413, "payload_too_large", errors.PayloadTooLarge),
        (500, "internal_error", errors.RevlnError),
    ],
)
def test_a_problem_is_the_error_of_its_code(
    script: Script, client: RevlnClient, status: int, code: str, kind: type[errors.RevlnError]
) -> None:
    script.refuse(status, code)
    with pytest.raises(kind, match=f"about {code}") as caught:
        client.job("j1")
    assert type(caught.value) is kind


def test_a_validation_problem_keeps_its_pointers(script: Script, client: RevlnClient) -> None:
    script.refuse(422, "validation_failed", errors=[{"detail": "too long", "pointer": "/input/items/3/text"}])
    with pytest.raises(errors.ValidationFailed) as caught:
        client.submit("embed", {})
    assert caught.value.errors == (errors.FieldError("too long", "/input/items/3/text"),)


def test_a_page_that_is_not_ours_is_still_one_clear_error(script: Script, client: RevlnClient) -> None:
    script.will(404, b"<html>nginx</html>")
    with pytest.raises(ApiError, match="HTTP 404 Not Found from"):
        client.job("j1")


def test_waiting_polls_until_the_job_is_done_and_shows_each_state(script: Script, client: RevlnClient) -> None:
    script.will(200, JOB | {"status": "running", "done": False})
    script.will(200, JOB)
    seen: list[str] = []
    assert client.wait("j1", on_update=lambda job: seen.append(job["status"]))["done"]
    assert seen == ["running", "succeeded"]
    assert "wait=" in script.requests[0][1]


def test_waiting_too_long_is_a_timeout(script: Script, client: RevlnClient) -> None:
    script.will(200, JOB | {"status": "running", "done": False})
    with pytest.raises(TimeoutError, match="j1 is still running after 0 s"):
        client.wait("j1", timeout_s=0)


def test_a_result_is_put_together_from_its_pages(script: Script, client: RevlnClient) -> None:
    script.will(200, {"items": [{"index": 0}, {"index": 1}], "total": 3, "dim": 8})
    script.will(200, {"items": [{"index": 2}], "total": 3, "dim": 8})
    assert client.result("j1", page_items=2) == {"items": [{"index": n} for n in range(3)], "total": 3, "dim": 8}
    assert "offset=2" in script.requests[1][1]


def test_a_result_of_a_search_and_an_empty_one_are_read_too(script: Script, client: RevlnClient) -> None:
    script.will(200, {"results": [{"query": 0, "hits": []}], "total": 1})
    script.will(200, {"items": [], "total": 5})
    assert len(client.result("j1")["results"]) == 1
    assert client.result("j2")["items"] == []


def test_lists_follow_their_cursor(script: Script, client: RevlnClient) -> None:
    script.will(200, {"jobs": [{"id": "b"}], "next_cursor": "c1"})
    script.will(200, {"jobs": [{"id": "a"}], "next_cursor": None})
    assert [job["id"] for job in client.jobs(kind="embed")] == ["b", "a"]
    assert "cursor=c1" in script.requests[1][1]
    assert "kind=embed" in script.requests[1][1]


def test_events_are_read_on_after_a_broken_stream(script: Script, client: RevlnClient) -> None:
    script.will(200, b'id: 1\nevent: status\ndata: {"n": 1}\n\nid: 2\nda', Content_Length="1000")
    script.will(200, b'id: 2\nevent: status\ndata: {"n": 2}\n\n')
    assert list(client.events("j1")) == [Event("1", "status", {"n": 1}), Event("2", "status", {"n": 2})]
    assert script.requests[1][2]["Last-Event-ID"] == "1"


def test_a_stream_that_breaks_is_resumed_after_the_last_event(script: Script, client: RevlnClient) -> None:
    script.will_hang_up()
    script.will(200, b'id: 8\nevent: status\ndata: {"status": "succeeded"}\n\n')
    assert [event.id for event in client.events("j1", last_event_id="7")] == ["8"]
    assert script.requests[1][2]["Last-Event-ID"] == "7"


def test_server_sent_events_may_have_comments_and_several_data_lines() -> None:
    lines = [": ping", "", "id: 4", "event: progress", 'data: {"a":', "data: 1}", "", "data: {}", ""]
    assert list(sse_events(iter(lines))) == [Event("4", "progress", {"a": 1}), Event("4", "message", {})]


def test_an_upload_sends_the_bytes_as_they_are(script: Script, client: RevlnClient) -> None:
    script.will(201, {"sha256": "ab"})
    assert client.upload(b"\xff\xd8jpeg")["sha256"] == "ab"
    assert script.requests[0][3] == b"\xff\xd8jpeg"


def test_every_error_code_of_the_house_is_known_to_the_client(script: Script, client: RevlnClient) -> None:
    def tree(root: type[errors.RevlnError]) -> Iterator[type[errors.RevlnError]]:
        yield root
        for child in root.__subclasses__():
            if child.__module__ == "revln.errors":
                yield from tree(child)

    for kind in tree(errors.RevlnError):
        script.refuse(400, kind.code)
        with pytest.raises(kind):
            client.job("j1")


def test_delete_cancel_and_retry_go_where_they_should(script: Script, client: RevlnClient) -> None:
    calls: list[tuple[Callable[[str], Any], str, str]] = [
        (client.cancel, "POST", "/v1/jobs/j1/cancel"),
        (client.retry, "POST", "/v1/jobs/j1/retry"),
        (client.delete, "DELETE", "/v1/jobs/j1"),
    ]
    for call, method, path in calls:
        script.will(200, JOB)
        call("j1")
        assert script.requests[-1][:2] == (method, path)


@pytest.mark.parametrize("url", ["http://127.0.0.1:abc", "http://[::1"])
def test_an_address_that_cannot_be_used_is_one_error_of_ours(url: str) -> None:
    with pytest.raises(SettingsError, match="cannot be used"):
        RevlnClient(url)


def test_a_socks_proxy_is_spoken_and_an_unknown_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    RevlnClient("http://api.example.org").close()
    monkeypatch.setenv("ALL_PROXY", "gopher://127.0.0.1:1")
    with pytest.raises(SettingsError, match="gopher"):
        RevlnClient("http://api.example.org")
