"""Webhooks on their way: the worker's own sender, a real database, a real receiver on loopback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from threading import Event, Lock
from typing import Any

import pytest
from sqlalchemy import update
from standardwebhooks import Webhook, WebhookVerificationError

from revln.access import DEFAULT_TENANT, OWNER
from revln.db import tables
from revln.db.engine import Database
from revln.db.jobs.changes import cancel_job
from revln.db.jobs.read import Job
from revln.db.migrate import upgrade
from revln.db.webhooks.log import LoggedDelivery, enable, list_deliveries, replay, replay_one
from revln.db.webhooks.secrets import rotate_secret, webhook_secrets
from revln.errors import Conflict, RevlnError
from revln.settings import Settings
from tests.builders import make_job
from tests.receivers import Received, Receiver, running_receiver, status
from tests.stack import wait_until
from worker.webhooks.sender import WebhookSender

TENANT = DEFAULT_TENANT


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path_factory.mktemp('webhooks') / 'revln.db'}"
    upgrade(Settings(database_url=url))
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as running:
        yield running


@contextmanager
def sending(db: Database, **settings: Any) -> Iterator[WebhookSender]:
    sender = WebhookSender(Settings(**{"webhook_private_addresses": True, "webhook_timeout_s": 30.0, **settings}), db)
    sender.start()
    try:
        yield sender
    finally:
        sender.stop()


def ended_job(db: Database, url: str, **more: Any) -> Job:
    """A job whose one event, its cancellation, is due."""
    origin = "/".join(url.split("/")[:3])
    webhook = {"url": url, "origin": origin, "events": ["job.canceled"], "progress_s": 10.0}
    return cancel_job(db, make_job(db, n_items=1, webhook=webhook, **more).id, OWNER)


def delivery(db: Database, job: Job) -> LoggedDelivery:
    with db.read() as connection:
        (found,) = list_deliveries(connection, TENANT, 10, job_id=job.id)
    return found


def tried(db: Database, job: Job, times: int = 1) -> LoggedDelivery:
    """Wait until a delivery was tried so often, and what came of it is written."""

    def look() -> LoggedDelivery | None:
        found = delivery(db, job)
        done = [attempt for attempt in found.attempts if attempt.finished_at is not None]
        return found if len(done) >= times else None

    found: LoggedDelivery = wait_until(look, what=f"attempt {times}")
    return found


def make_due(db: Database, job: Job) -> None:
    with db.write() as connection:
        connection.execute(update(tables.deliveries).where(tables.deliveries.c.job_id == job.id).values(due_at=0.0))


def verified(db: Database, received: Received) -> Any:
    """As a receiver does it: the library's own verifier and the tenant's secret."""
    (secret, *_) = webhook_secrets(db, TENANT)
    return Webhook(secret.secret).verify(received.body, received.headers)


def test_an_event_arrives_once_signed_and_in_the_form_of_the_specification(db: Database, receiver: Receiver) -> None:
    with sending(db):
        job = ended_job(db, receiver.url("/hook?order=17"), metadata={"order": "17 – „x“"})
        found = tried(db, job)
    (seen,) = receiver.seen
    assert seen.path == "/hook?order=17"
    assert seen.headers["content-type"] == "application/json"
    assert seen.id == found.id
    event = verified(db, seen)
    assert set(event) == {"type", "timestamp", "data"}
    assert event["type"] == "job.canceled"
    assert event["data"]["id"] == job.id
    assert event["data"]["metadata"] == {"order": "17 – „x“"}
    assert (found.state, found.attempts[0].status, found.attempts[0].error) == ("delivered", 204, None)


def test_a_body_that_was_changed_on_its_way_is_noticed(db: Database, receiver: Receiver) -> None:
    with sending(db):
        tried(db, ended_job(db, receiver.url()))
    (seen,) = receiver.seen
    with pytest.raises(WebhookVerificationError):
        verified(db, Received(seen.path, seen.headers, seen.body.replace(b"canceled", b"failed")))
    with pytest.raises(WebhookVerificationError):
        verified(db, Received(seen.path, {**seen.headers, "webhook-id": "msg_other"}, seen.body))


def test_while_a_secret_is_replaced_both_sign(db: Database, receiver: Receiver) -> None:
    (old, *_) = webhook_secrets(db, TENANT)
    new = rotate_secret(db, OWNER, None, 3600.0)[0]
    with sending(db):
        tried(db, ended_job(db, receiver.url()))
    (seen,) = receiver.seen
    assert len(seen.headers["webhook-signature"].split(" ")) >= 2
    for secret in (old, new):
        assert Webhook(secret.secret).verify(seen.body, seen.headers)["type"] == "job.canceled"


def test_a_failure_is_tried_again_under_the_same_id_with_the_same_body(db: Database, receiver: Receiver) -> None:
    receiver.answers["/hook"] = 500
    with sending(db):
        job = ended_job(db, receiver.url())
        found = tried(db, job)
        assert found.state == "pending"
        assert found.due_at > found.attempts[0].started_at + 4.9
        receiver.answers["/hook"] = 200
        make_due(db, job)
        found = tried(db, job, 2)
    first, second = receiver.seen
    assert (first.id, first.body) == (second.id, second.body)
    assert verified(db, second)
    assert [attempt.status for attempt in found.attempts] == [500, 200]
    assert found.attempts[0].error == "answered 500"
    assert found.state == "delivered"


def test_a_receiver_that_says_when_is_not_asked_before(db: Database, receiver: Receiver) -> None:
    receiver.answers["/hook"] = status(503, Retry_After="7200")
    with sending(db):
        found = tried(db, ended_job(db, receiver.url()))
    assert 7200 <= found.due_at - found.attempts[0].started_at < 7300


def test_after_the_last_try_it_has_failed_and_a_replay_begins_anew(db: Database, receiver: Receiver) -> None:
    receiver.answers["/hook"] = 404
    with sending(db):
        job = ended_job(db, receiver.url())
        for tries in range(1, 11):
            found = tried(db, job, tries)
            make_due(db, job)
        assert found.state == "failed"
        receiver.answers["/hook"] = 200
        assert replay(db, OWNER, job_id=job.id) == 1
        found = tried(db, job, 11)
        assert found.state == "delivered"
        # Delivered and lost by its receiver: only by its id.
        assert replay(db, OWNER, job_id=job.id) == 0
        replay_one(db, OWNER, job.id, found.id)
        tried(db, job, 12)
    assert {seen.id for seen in receiver.seen} == {found.id}
    assert len(receiver.seen) == 12


def test_a_redirect_is_a_failure_and_is_not_followed(db: Database, receiver: Receiver) -> None:
    receiver.answers["/hook"] = status(302, Location=receiver.url("/elsewhere"))
    with sending(db):
        found = tried(db, ended_job(db, receiver.url()))
    assert [seen.path for seen in receiver.seen] == ["/hook"]
    assert found.state == "pending"
    assert "redirects are not followed" in str(found.attempts[0].error)


def test_a_receiver_that_is_gone_is_disabled_at_that_url_until_it_is_enabled(db: Database, receiver: Receiver) -> None:
    receiver.answers["/gone"] = 410
    with sending(db):
        first = ended_job(db, receiver.url("/gone"))
        assert tried(db, first).state == "disabled"
        second, other = ended_job(db, receiver.url("/gone")), ended_job(db, receiver.url("/here"))
        assert tried(db, other).state == "delivered"
        wait_until(lambda: delivery(db, second).state == "disabled")
        assert [seen.path for seen in receiver.seen] == ["/gone", "/here"]
        with pytest.raises(Conflict, match="410"):
            replay_one(db, OWNER, second.id, delivery(db, second).id)
        receiver.answers["/gone"] = 200
        enable(db, OWNER, receiver.url("/gone"), receiver.url(""))
        replay_one(db, OWNER, second.id, delivery(db, second).id)
        assert tried(db, second).state == "delivered"


def test_a_receiver_that_does_not_answer_in_time_is_a_failure(db: Database, receiver: Receiver) -> None:
    over = Event()
    receiver.answers["/hook"] = lambda handler: over.wait(300) and status(200)(handler)
    with sending(db, webhook_timeout_s=0.5):
        job = ended_job(db, receiver.url())
        found = tried(db, job)
        over.set()
    assert found.state == "pending"
    assert "did not answer within 0.5 s" in str(found.attempts[0].error)


def test_a_private_address_is_refused_and_never_dialled(db: Database, receiver: Receiver) -> None:
    with sending(db, webhook_private_addresses=False):
        found = tried(db, ended_job(db, receiver.url()))
        named = tried(db, ended_job(db, receiver.url(host="localhost")))
    assert receiver.connections == 0
    for each in (found, named):
        assert each.attempts[0].status is None
        assert "loopback" in str(each.attempts[0].error)


def test_a_sender_that_dies_before_it_records_makes_the_delivery_again(
    db: Database, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> bool:
        raise RevlnError("the machine lost power")

    with monkeypatch.context() as patch, sending(db):
        patch.setattr("worker.webhooks.sender.record", die)
        job = ended_job(db, receiver.url())
        wait_until(lambda: receiver.seen)
    assert delivery(db, job).state == "pending"
    with db.write() as connection:
        connection.execute(update(tables.deliveries).values(lease_until=0.0))
    with sending(db):
        found = tried(db, job)
    first, second = receiver.seen
    assert (first.id, first.body) == (second.id, second.body)
    assert [attempt.finished_at is None for attempt in found.attempts] == [True, False]
    assert found.state == "delivered"


def test_slow_receivers_hold_up_neither_others_nor_more_than_their_share(db: Database, receiver: Receiver) -> None:
    over, lock = Event(), Lock()
    at_once = [0, 0]

    def slow(handler: BaseHTTPRequestHandler) -> None:
        with lock:
            at_once[0] += 1
            at_once[1] = max(at_once)
        over.wait(300)
        with lock:
            at_once[0] -= 1
        status(200)(handler)

    receiver.answers["/slow"] = slow
    with (
        running_receiver() as quick,
        sending(db, webhook_concurrency=4, webhook_concurrency_per_host=2, webhook_timeout_s=60.0),
    ):
        held = [ended_job(db, receiver.url("/slow")) for _ in range(6)]
        wait_until(lambda: at_once[0] == 2)
        for _ in range(3):
            tried(db, ended_job(db, quick.url()))
        assert at_once == [2, 2]
        over.set()
        for job in held:
            assert tried(db, job).state == "delivered"
    assert at_once == [0, 2]


def test_progress_and_tests_are_tried_once(db: Database, receiver: Receiver) -> None:
    receiver.answers["/hook"] = 500
    with sending(db):
        job = ended_job(db, receiver.url())
        tried(db, job)
        with db.write() as connection:
            connection.execute(
                update(tables.deliveries)
                .where(tables.deliveries.c.job_id == job.id)
                .values(type="job.progress", due_at=0.0)
            )
        assert tried(db, job, 2).state == "failed"


def test_neither_url_nor_payload_nor_secret_comes_into_a_log(
    db: Database, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with sending(db):
        for code in (200, 500, 410):
            receiver.answers[f"/path-{code}"] = code
            tried(db, ended_job(db, receiver.url(f"/path-{code}?token=hunter2"), metadata={"name": "Mallory"}))
        receiver.close()
        tried(db, ended_job(db, receiver.url("/path-0?token=hunter2"), metadata={"name": "Mallory"}))
    shown = caplog.text
    assert "webhook msg_" in shown
    (secret, *_) = webhook_secrets(db, TENANT)
    for hidden in ("hunter2", "/path-", "Mallory", secret.secret):
        assert hidden not in shown


def test_a_sender_outlives_a_database_that_is_away(
    db: Database, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.webhooks import sender as webhooks

    real: Callable[..., Any] = webhooks.claim_deliveries
    failures = iter([RevlnError("away"), RuntimeError("odd")])

    def claim(*given: Any) -> Any:
        if error := next(failures, None):
            raise error
        return real(*given)

    monkeypatch.setattr(webhooks, "claim_deliveries", claim)
    with sending(db, webhook_concurrency=1):
        assert tried(db, ended_job(db, receiver.url())).state == "delivered"
