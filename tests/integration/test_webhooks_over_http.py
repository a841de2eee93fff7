"""Webhooks as a client has them: submitted with a job, read in the log, replayed, tested, rotated."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from standardwebhooks import Webhook

from revln import embedded_redis
from revln.cli.webhooks import webhooks
from tests.conftest import fresh_database
from tests.inline import InlineStack, inline_stack
from tests.receivers import Receiver, running_receiver
from tests.stack import wait_until


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InlineStack]:
    folder = tmp_path_factory.mktemp("webhooks")
    with (
        fresh_database("sqlite", folder, request) as url,
        inline_stack(url, folder, webhook_private_addresses=True, webhook_progress_s=3600.0) as running,
    ):
        running.client.create_collection("own", dim=2)
        running.runtime.webhooks.start()
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as running:
        yield running


def submit(stack: InlineStack, webhook: dict[str, Any], count: int = 1) -> httpx.Response:
    """A job that needs no model: vectors of one's own are written down."""
    asked = {"collection": "own", "items": [{"id": str(number), "vector": [1.0, number]} for number in range(count)]}
    return stack.http.post("/v1/jobs", json={"kind": "index", "input": asked, "webhook": webhook})


def log(stack: InlineStack, job_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = stack.http.get(f"/v1/jobs/{job_id}/webhooks").json()["webhooks"]
    return found


def settled(stack: InlineStack, job_id: str, count: int) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]] | None:
        found = log(stack, job_id)
        return found if len(found) == count and all(each["settled_at"] for each in found) else None

    found: list[dict[str, Any]] = wait_until(look, what="the deliveries")
    return found


def test_a_job_tells_its_receiver_that_it_started_and_ended(stack: InlineStack, receiver: Receiver) -> None:
    answer = submit(stack, {"url": receiver.url()})
    assert answer.status_code == 202
    job = answer.json()
    assert job["webhook"] == {
        "url": receiver.url(),
        "events": ["job.started", "job.succeeded", "job.failed", "job.canceled", "job.expired"],
    }
    ended, started = settled(stack, job["id"], 2)
    assert (started["type"], ended["type"]) == ("job.started", "job.succeeded")
    secret = stack.client.webhook_secrets()[0]["secret"]
    events = {seen.id: Webhook(secret).verify(seen.body, seen.headers) for seen in receiver.seen}
    assert events[ended["id"]]["data"]["counts"] == {"total": 1, "succeeded": 1, "failed": 0}
    # The event says of the job what the API says of it.
    now = stack.client.job(job["id"])
    data = events[ended["id"]]["data"]
    assert {name: now[name] for name in data if name in now} == {name: data[name] for name in data if name in now}
    assert set(data) - set(now) == {"version"}


def test_progress_is_told_to_those_who_ask_and_thinned(stack: InlineStack, receiver: Receiver) -> None:
    job = submit(stack, {"url": receiver.url(), "events": ["job.progress", "job.succeeded"]}, count=4_000).json()
    stack.client.wait(job["id"], 300)
    wait_until(lambda: "job.succeeded" in receiver.types)
    assert receiver.types.count("job.progress") <= 1  # four chunks within the hour


@pytest.mark.parametrize(
    ("webhook", "pointer"),
    [
        ({"url": "ftp://example.org/"}, "/webhook/url"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "/webhook/url"),
        ({"url": "https://example.org:22/"}, "/webhook/url"),
        ({"url": "https://example.org/" + "x" * 3000}, "/webhook/url"),
        ({"url": "https://example.org/\x00"}, "/webhook/url"),
        ({"events": ["job.succeeded"]}, "/webhook/url"),
        ({"url": "https://example.org/", "events": []}, "/webhook/events"),
        ({"url": "https://example.org/", "events": ["job.done"]}, "/webhook/events/0"),
        ({"url": "https://example.org/", "secret": "mine"}, "/webhook/secret"),
        ("https://example.org/", "/webhook"),
    ],
)
def test_a_webhook_that_cannot_be_is_refused_where_it_stands(stack: InlineStack, webhook: Any, pointer: str) -> None:
    answer = submit(stack, webhook)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_the_log_says_what_came_of_every_attempt_and_a_replay_tries_again(
    stack: InlineStack, receiver: Receiver
) -> None:
    receiver.answers["/hook"] = 500
    job = submit(stack, {"url": receiver.url(), "events": ["job.succeeded"]}).json()
    path = f"/v1/jobs/{job['id']}/webhooks"
    one = wait_until(lambda: _tried(stack, job["id"]))
    assert (one["state"], one["job_id"], one["url"]) == ("pending", job["id"], receiver.url())
    assert (one["attempts"][0]["status"], one["attempts"][0]["error"]) == (500, "answered 500")
    assert one["next_try_at"] > one["attempts"][0]["started_at"]
    detail = stack.http.get(f"/v1/webhooks/{one['id']}").json()
    assert detail["data"]["status"] == "succeeded"
    assert {**detail, "data": None} == {**one, "data": None}
    receiver.answers["/hook"] = 200
    assert stack.http.post(f"{path}/replay").json() == {"replayed": 1}
    (one,) = settled(stack, job["id"], 1)
    assert (one["state"], one["next_try_at"], len(one["attempts"])) == ("delivered", None, 2)
    assert stack.http.post(f"{path}/replay").json() == {"replayed": 0}
    assert stack.http.post(f"{path}/replay", json={"id": one["id"]}).json() == {"replayed": 1}
    wait_until(lambda: len(receiver.seen) == 3)
    assert len({seen.id for seen in receiver.seen}) == 1


def _tried(stack: InlineStack, job_id: str) -> dict[str, Any] | None:
    """The job's last event once it was tried and what came of it is written."""
    found = log(stack, job_id)
    return found[0] if found and found[0]["attempts"] and found[0]["attempts"][0]["finished_at"] else None


def test_what_an_outage_kept_from_its_receiver_is_replayed_by_time(stack: InlineStack, receiver: Receiver) -> None:
    receiver.answers["/hook"] = 404
    jobs = [submit(stack, {"url": receiver.url(), "events": ["job.succeeded"]}).json() for _ in range(2)]
    for job in jobs:
        wait_until(lambda job=job: _tried(stack, job["id"]))
    receiver.answers["/hook"] = 200
    early = "2020-01-01T00:00:00Z"
    assert stack.client.replay_webhooks(since=early, until="2020-01-02T00:00:00Z") == 0
    assert stack.client.replay_webhooks(since=early) >= 2
    for job in jobs:
        assert settled(stack, job["id"], 1)[0]["state"] == "delivered"
    assert stack.http.post("/v1/webhooks/replay", json={}).status_code == 422


def test_the_log_of_all_jobs_is_paged_and_filtered(stack: InlineStack, receiver: Receiver) -> None:
    for _ in range(2):
        settled(stack, submit(stack, {"url": receiver.url()}).json()["id"], 2)
    whole = stack.http.get("/v1/webhooks?limit=1000").json()["webhooks"]
    paged, cursor = [], None
    while True:
        page = stack.http.get("/v1/webhooks", params={"limit": 3, **({"cursor": cursor} if cursor else {})}).json()
        paged += page["webhooks"]
        if not (cursor := page["next_cursor"]):
            break
    assert [each["id"] for each in paged] == [each["id"] for each in whole]
    assert [each["created_at"] for each in whole] == sorted((each["created_at"] for each in whole), reverse=True)
    only = stack.http.get("/v1/webhooks?state=delivered&limit=1000").json()["webhooks"]
    assert [each["id"] for each in only] == [each["id"] for each in whole if each["state"] == "delivered"]
    assert stack.http.get("/v1/webhooks?state=lost").status_code == 422
    assert stack.http.get("/v1/webhooks?cursor=x").status_code == 422


def test_a_test_arrives_signed_and_says_what_came_of_it(stack: InlineStack, receiver: Receiver) -> None:
    receiver.answers["/bad"] = 403
    for path, state in (("/good", "delivered"), ("/bad", "failed")):
        sent = stack.http.post("/v1/webhooks/test", json={"url": receiver.url(path)})
        assert sent.status_code == 202
        assert sent.json()["type"] == "webhook.test"
        assert sent.json()["job_id"] is None
        found = wait_until(lambda sent=sent: _settled(stack, sent.json()["id"]))
        assert found["state"] == state
    secret = stack.client.webhook_secrets()[0]["secret"]
    assert Webhook(secret).verify(receiver.seen[0].body, receiver.seen[0].headers)["type"] == "webhook.test"
    assert stack.http.post("/v1/webhooks/test", json={"url": "http://0x7f.1/"}).status_code == 422


def _settled(stack: InlineStack, webhook_id: str) -> dict[str, Any] | None:
    found = stack.http.get(f"/v1/webhooks/{webhook_id}").json()
    return found if found["settled_at"] else None


def test_a_secret_is_rotated_with_an_overlap_or_set_by_its_owner(stack: InlineStack) -> None:
    before = stack.client.webhook_secrets()
    both = stack.client.rotate_webhook_secret()
    assert both[1]["secret"] == before[0]["secret"]
    assert both[1]["expires_at"] is not None
    assert both[0]["expires_at"] is None
    mine = "whsec_" + "A" * 40
    (only,) = stack.client.rotate_webhook_secret(secret=mine, overlap_s=0)
    assert only["secret"] == mine
    for bad in ("mine", "whsec_short", "whsec_" + "A" * 100, "A" * 40):
        answer = stack.http.post("/v1/webhooks/secret/rotate", json={"secret": bad})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/secret"
        assert bad not in answer.text or bad == "mine"


def test_a_url_that_answered_410_is_enabled_again(stack: InlineStack, receiver: Receiver) -> None:
    receiver.answers["/gone"] = 410
    job = submit(stack, {"url": receiver.url("/gone"), "events": ["job.succeeded"]}).json()
    assert settled(stack, job["id"], 1)[0]["state"] == "disabled"
    assert stack.http.post("/v1/webhooks/test", json={"url": receiver.url("/gone")}).status_code == 409
    one = log(stack, job["id"])[0]
    answer = stack.http.post(f"/v1/jobs/{job['id']}/webhooks/replay", json={"id": one["id"]})
    assert answer.status_code == 409
    receiver.answers["/gone"] = 200
    assert stack.http.post("/v1/webhooks/enable", json={"url": receiver.url("/gone")}).json()["enabled"]
    assert stack.http.post("/v1/webhooks/enable", json={"url": receiver.url("/gone")}).status_code == 404
    assert stack.http.post(f"/v1/jobs/{job['id']}/webhooks/replay").json() == {"replayed": 1}
    assert settled(stack, job["id"], 1)[0]["state"] == "delivered"


def test_who_replayed_tested_enabled_and_rotated_stands_in_the_audit_log(
    stack: InlineStack, receiver: Receiver
) -> None:
    job = submit(stack, {"url": receiver.url(), "events": ["job.succeeded"]}).json()
    (one,) = settled(stack, job["id"], 1)
    stack.client.replay_webhooks(job["id"], one["id"])
    sent = stack.client.test_webhook(receiver.url("/hook?token=hunter2"))
    (secret, *_) = stack.client.rotate_webhook_secret()
    entries = stack.http.get("/v1/audit?limit=100").json()
    actions = [(each["action"], each["what"]) for each in entries["entries"]]
    assert actions[:3] == [("webhook.rotate", "secret"), ("webhook.test", sent["id"]), ("webhook.replay", one["id"])]
    assert secret["secret"] not in json.dumps(entries)
    assert "hunter2" not in json.dumps(entries)


def test_what_is_not_there_is_not_found(stack: InlineStack) -> None:
    nobody = "00000000-0000-0000-0000-000000000000"
    for path in (f"/v1/jobs/{nobody}/webhooks", "/v1/webhooks/msg_0", "/v1/webhooks/%00"):
        assert stack.http.get(path).status_code == 404
    assert stack.http.post(f"/v1/jobs/{nobody}/webhooks/replay").status_code == 404


def test_metrics_count_the_deliveries(stack: InlineStack, receiver: Receiver) -> None:
    settled(stack, submit(stack, {"url": receiver.url()}).json()["id"], 2)
    assert 'revln_webhooks{state="delivered"}' in stack.http.get("/metrics").text


def revln(stack: InlineStack, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(webhooks, [*arguments, "--url", stack.url], standalone_mode=False)
    return done.return_value or 0, done.output


def test_the_command_tests_lists_and_replays(stack: InlineStack, receiver: Receiver) -> None:
    receiver.answers["/hook"] = 500
    code, shown = revln(stack, "test", receiver.url())
    assert (code, shown.split()[1:]) == (1, ["failed", "answered", "500"])
    job = submit(stack, {"url": receiver.url(), "events": ["job.succeeded"]}).json()
    wait_until(lambda: _tried(stack, job["id"]))
    assert json.loads(revln(stack, "list", job["id"], "--json")[1])[0]["job_id"] == job["id"]
    assert "job.succeeded" in revln(stack, "list", "--limit", "1")[1]
    receiver.answers["/hook"] = 200
    assert revln(stack, "replay", job["id"])[1] == "1 due again\n"
    settled(stack, job["id"], 1)
    assert revln(stack, "replay", "--since", "0m")[1] == "0 due again\n"
    assert revln(stack, "secret")[1].splitlines()[0] == stack.client.webhook_secrets()[0]["secret"]
    assert revln(stack, "secret", "--rotate")[1].splitlines()[1].count(" until ") == 1


def test_the_receiver_of_the_documentation_verifies_what_it_is_sent(stack: InlineStack, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/webhooks.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    port = embedded_redis.free_port("127.0.0.1")
    code = code.replace("whsec_…", stack.client.webhook_secrets()[0]["secret"]).replace("9000", str(port))
    with (tmp_path / "out").open("wb") as out, subprocess.Popen([sys.executable, "-c", code], stdout=out) as server:
        try:
            wait_until(lambda: _answers(port), what="the receiver")
            url = f"http://127.0.0.1:{port}/"
            sent = stack.client.test_webhook(url)
            assert wait_until(lambda: _settled(stack, sent["id"]))["state"] == "delivered"
            job = submit(stack, {"url": url, "events": ["job.succeeded"]}).json()
            assert settled(stack, job["id"], 1)[0]["state"] == "delivered"
            assert f"job.succeeded {{'id': '{job['id']}'" in (tmp_path / "out").read_text()
            stack.client.rotate_webhook_secret(overlap_s=0)
            unsigned = stack.client.test_webhook(url)
            assert wait_until(lambda: _settled(stack, unsigned["id"]))["attempts"][0]["status"] == 401
        finally:
            server.kill()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
