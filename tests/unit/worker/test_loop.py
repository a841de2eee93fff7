"""What runs in the background of a worker starts, goes on after a failure, says what failed, and stops."""

from __future__ import annotations

import logging
from threading import Event

import pytest

from revln.errors import Unavailable
from tests.stack import wait_until
from worker.loop import Loop

AWAY = Unavailable("The database does not answer.")


def test_a_loop_calls_its_steps_at_once_and_again_until_it_is_stopped() -> None:
    calls: list[str] = []
    loop = Loop("both", 0.001, lambda: calls.append("a"), lambda: calls.append("b"), first_s=0.0, jitter=0.25)
    assert not calls
    loop.start()
    wait_until(lambda: len(calls) >= 6, what="three rounds")
    loop.stop()
    assert calls[:6] == ["a", "b"] * 3
    assert not loop._thread.is_alive()


def test_a_loop_that_waits_for_an_hour_is_woken_and_stops_at_once() -> None:
    called = Event()
    loop = Loop("rare", 3_600.0, called.set)
    loop.start()
    loop.wake()
    assert called.wait(10)
    loop.stop()
    assert not loop._thread.is_alive()


def test_a_step_that_fails_is_said_once_and_again_when_it_works_and_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = iter([AWAY, AWAY, AWAY, ZeroDivisionError("a fault of ours")])
    good: list[None] = []

    def fails() -> None:
        for err in failures:
            raise err

    with caplog.at_level(logging.INFO, "worker.loop"):
        loop = Loop("bad", 0.001, fails, lambda: good.append(None), first_s=0.0)
        loop.start()
        wait_until(lambda: len(good) >= 6, what="six rounds")
        loop.stop()
    said = [(record.getMessage(), bool(record.exc_info)) for record in caplog.records]
    assert said == [
        ("bad: The database does not answer.", False),
        ("bad: ZeroDivisionError: a fault of ours", True),
        ("bad: works again", False),
    ]


def test_a_loop_that_never_ran_stops_and_one_may_stop_itself() -> None:
    Loop("idle", 1.0).stop()
    calls: list[None] = []

    def once() -> None:
        calls.append(None)
        loop.stop()

    loop = Loop("once", 0.0, once, first_s=0.0)
    loop.start()
    wait_until(lambda: not loop._thread.is_alive(), what="its end")
    assert len(calls) == 1


def test_stopping_waits_for_a_step_only_as_long_as_it_is_told_to() -> None:
    inside, done = Event(), Event()

    def hangs() -> None:
        inside.set()
        done.wait(10)

    loop = Loop("hung", 0.0, hangs, first_s=0.0, patience_s=0.0)
    loop.start()
    assert inside.wait(10)
    loop.stop()
    assert loop._thread.is_alive()
    done.set()
    wait_until(lambda: not loop._thread.is_alive(), what="its end")
