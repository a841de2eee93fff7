"""A worker that is killed between a webhook and its record."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from sqlalchemy import update
from standardwebhooks import Webhook

from revln.db import tables
from revln.db.engine import Database
from tests.chaos.lab import LabStack
from tests.chaos.zygote import Zygote
from tests.receivers import Received, running_receiver, status
from tests.stack import running, wait_until


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


def test_a_worker_killed_by_what_it_told_tells_it_again_under_the_same_id(tmp_path: Path, zygote: Zygote) -> None:
    with (
        running_receiver() as receiver,
        running(LabStack(tmp_path, zygote, quick=True, webhook_private_addresses=True)) as stack,
    ):
        killed: list[int] = []

        def kill_once(handler: BaseHTTPRequestHandler) -> None:
            if receiver.seen[-1].type == "job.succeeded" and not killed:
                killed.append(stack.kill("worker"))
            status(200)(handler)

        receiver.answers["/hook"] = kill_once
        job = stack.client.submit("embed", {"items": [{"text": "a dog"}]}, webhook={"url": receiver.url()})
        wait_until(lambda: killed, what="the end of the worker")
        assert stack.client.job(job["id"])["status"] == "succeeded"  # committed before it was told
        db = Database(stack.settings.resolved_database_url)
        with db.write() as connection:
            connection.execute(update(tables.deliveries).values(lease_until=0.0))
        db.close()
        stack.start_worker()
        ends = wait_until(lambda: _twice([seen for seen in receiver.seen if seen.type == "job.succeeded"]))
        assert ends[0].id == ends[1].id
        assert ends[0].body == ends[1].body
        (secret,) = stack.client.webhook_secrets()
        assert Webhook(secret["secret"]).verify(ends[1].body, ends[1].headers)["data"]["id"] == job["id"]
        wait_until(lambda: all(each["state"] == "delivered" for each in stack.client.webhooks(job["id"])))
        last = next(each for each in stack.client.webhooks(job["id"]) if each["type"] == "job.succeeded")
        assert [attempt["finished_at"] is None for attempt in last["attempts"]] == [True, False]


def _twice(seen: list[Received]) -> list[Received] | None:
    return seen if len(seen) == 2 else None
