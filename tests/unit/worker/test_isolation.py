"""What may have killed a worker runs alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Lock

from tests.stack import wait_until
from worker.isolation import Isolation


def test_sharers_run_together() -> None:
    isolation, barrier = Isolation(), Barrier(4)

    def share() -> None:
        with isolation.shared():
            barrier.wait(10)  # passes only with all four inside

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(share) for _ in range(4)]:
            future.result(10)


def test_whoever_is_alone_is_alone_and_everyone_gets_a_turn() -> None:
    isolation, lock = Isolation(), Lock()
    inside = 0
    turns = {"alone": 0, "shared": 0}

    def run(number: int) -> None:
        nonlocal inside
        alone = number % 3 == 0
        with isolation.alone() if alone else isolation.shared():
            with lock:
                inside += 1
                assert not alone or inside == 1
                turns["alone" if alone else "shared"] += 1
            with lock:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(run, number) for number in range(300)]:
            future.result(10)
    assert turns == {"alone": 100, "shared": 200}


def test_who_waits_to_be_alone_goes_before_new_sharers() -> None:
    isolation, first_may_go, order = Isolation(), Event(), list[str]()

    def first() -> None:
        with isolation.shared():
            first_may_go.wait(10)

    def suspect() -> None:
        with isolation.alone():
            order.append("suspect")

    def late() -> None:
        with isolation.shared():
            order.append("late")

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(first), pool.submit(suspect)]
        wait_until(lambda: isolation._waiting_alone, what="the suspect in line")
        futures.append(pool.submit(late))
        first_may_go.set()
        for future in futures:
            future.result(10)
    assert order == ["suspect", "late"]
