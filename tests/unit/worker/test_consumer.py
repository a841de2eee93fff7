"""Celery's consumer, where it gives up on a Redis that dies: it takes the worker along, or waits too long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.consumer import Consumer

from revln.settings import Settings
from worker.health.consumer import ForgetfulQoS, PatientConsumer, StoppingWorker
from worker.runtime import Runtime


def consumer() -> PatientConsumer:
    made = PatientConsumer.__new__(PatientConsumer)
    made.first_connection_attempt = True
    return made


def test_a_lost_connection_that_cannot_be_closed_takes_nobody_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: Any) -> None:
        raise AttributeError("'NoneType' object has no attribute 'hostname'")

    monkeypatch.setattr(Consumer, "on_connection_error_after_connected", stumble)
    consumer().on_connection_error_after_connected(ConnectionError("closed by server"))


@pytest.mark.parametrize("connection", [None, SimpleNamespace(client=None)])
def test_what_came_over_a_connection_that_is_gone_is_neither_acknowledged_nor_put_back(connection: Any) -> None:
    qos = ForgetfulQoS(SimpleNamespace(connection=connection, do_restore=False))
    qos._delivered["tag"] = object()
    qos.ack("tag")
    qos.reject("tag", requeue=True)
    qos.restore_unacked()


def test_it_tries_to_connect_for_ever_with_pauses_of_two_seconds_at_most() -> None:
    asked: dict[str, Any] = {}

    class Connection:
        def ensure_connection(self, failed: Any, most: Any, **options: Any) -> None:
            asked.update(options, most=most)

    connection, made = Connection(), consumer()
    assert made.ensure_connected(connection) is connection
    assert (asked["most"], asked["interval_max"]) == (None, 2.0)
    assert not made.first_connection_attempt


def test_a_worker_that_falls_over_says_so_before_it_waits_for_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    worker = StoppingWorker.__new__(StoppingWorker)
    worker._on_stop = said.append
    monkeypatch.setattr(StoppingWorker.__mro__[1], "stop", lambda *_: said.append("waits"))
    worker.stop(exitcode=1)
    worker.stop()
    assert said == [1, "waits", 0, "waits"]


def test_a_worker_is_busy_only_when_every_thread_works_on_a_chunk() -> None:
    runtime = Runtime.__new__(Runtime)
    runtime.settings, runtime._occupied = Settings(concurrency=2), {}
    with runtime.occupied(by_chunk=True):
        assert (runtime.full, runtime.busy) == (False, False)
        runtime._occupied[0] = True
        assert (runtime.full, runtime.busy) == (True, True)
        runtime._occupied[0] = False
        assert (runtime.full, runtime.busy) == (True, False), "one waits for a model: not deaf, but not ready either"
    assert not runtime.full
