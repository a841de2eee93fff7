"""Tenants take turns at a worker's threads."""

from __future__ import annotations

from concurrent.futures import CancelledError
from threading import Event

import pytest

from tests.stack import DEADLINE_S
from worker.fair_pool import FairPool


def test_one_tenants_many_do_not_hold_up_anothers_one() -> None:
    pool, go, began, order = FairPool(1, "prepare"), Event(), Event(), []

    def hold() -> bool:
        began.set()
        return go.wait(DEADLINE_S)

    first = pool.submit("greedy", hold)
    assert began.wait(DEADLINE_S)
    rest = [pool.submit("greedy", order.append, f"greedy {n}") for n in range(5)]
    rest += [pool.submit("small", order.append, "small 0"), pool.submit("other", order.append, "other 0")]
    go.set()
    for future in (first, *rest):
        future.result(DEADLINE_S)
    assert order == ["greedy 0", "small 0", "other 0", *(f"greedy {n}" for n in range(1, 5))]
    pool.shutdown()


def test_a_result_an_error_and_a_cancellation_reach_who_waits() -> None:
    pool, go, began = FairPool(1, "prepare"), Event(), Event()
    assert pool.submit("a", divmod, 7, 2).result(DEADLINE_S) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        pool.submit("a", divmod, 7, 0).result(DEADLINE_S)

    def hold() -> bool:
        began.set()
        return go.wait(DEADLINE_S)

    running = pool.submit("a", hold)
    assert began.wait(DEADLINE_S)
    canceled, waiting = pool.submit("a", int), pool.submit("b", int)
    assert canceled.cancel()
    pool.shutdown()
    with pytest.raises(CancelledError):
        waiting.result(DEADLINE_S)
    go.set()
    assert running.result(DEADLINE_S)
    with pytest.raises(RuntimeError):
        pool.submit("a", int)
