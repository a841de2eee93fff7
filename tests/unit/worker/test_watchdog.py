"""What hangs is told from what is slow by whether its thread moves, and then the process goes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import FrameType
from typing import Any

import pytest

from revln.jobs.kinds import Priority
from revln.models.base import Operation
from tests.fakes import OrderedModel
from tests.stack import wait_until
from worker.health.watchdog import Watchdog, Work
from worker.models.batcher import Batcher

STALL_S = 300.0


class Waiting:
    """A lease, as far as the watchdog knows one."""

    def __init__(self, give_up_at: float) -> None:
        self.give_up_at = give_up_at
        self.told = 0

    def progress(self) -> None:
        self.told += 1


@contextmanager
def in_a_call(watch: Callable[[], Any]) -> Iterator[None]:
    """A thread that is inside ``watch`` and does not come back before the end of the block."""
    inside, done = Event(), Event()

    def hang() -> None:
        with watch():
            inside.set()
            done.wait()

    thread = Thread(target=hang)
    thread.start()
    inside.wait(10)
    try:
        yield
    finally:
        done.set()
        thread.join(10)


def frame() -> FrameType:
    return sys._getframe()


def looks(work: Work, frames: dict[float, FrameType], now: float) -> bool:
    """Whether it hangs after looks at these moments."""
    for at, one in frames.items():
        work.look(now + at, one)
    return work.hangs(now + max(frames), STALL_S)


@pytest.mark.parametrize(
    ("deadline_s", "age_s", "hangs"),
    [(5, 14, False), (5, 15.5, True), (60, 69, False), (60, 71, True), (1000, 299, False), (1000, 301, True)],
)
def test_a_forward_pass_that_stands_still_hangs_ten_seconds_after_its_deadline_or_when_it_has_stalled(
    deadline_s: float, age_s: float, hangs: bool
) -> None:
    now, still = time.monotonic(), frame()
    work = Work("a batch", [Waiting(now), Waiting(now + deadline_s)], list)
    assert looks(work, {float(at): still for at in range(1, int(age_s))} | {age_s: still}, now) is hangs


def test_a_slow_one_that_moves_may_take_longer_than_the_deadline_and_keeps_its_lease_and_those_in_line() -> None:
    now, mine, next_one = time.monotonic(), Waiting(0.0), Waiting(0.0)
    mine.give_up_at = now + 1
    work = Work("a batch", [mine], lambda: [next_one])
    assert not looks(work, {float(at): frame() for at in range(2, 200)}, now)
    assert (mine.told, next_one.told) == (197, 197)


def test_what_stands_still_is_no_progress_of_those_who_wait_for_it() -> None:
    now, waiting, still = time.monotonic(), Waiting(0.0), frame()
    waiting.give_up_at = now + 1000
    looks(Work("a batch", [waiting], list), {float(at): still for at in range(2, 100)}, now)
    assert waiting.told == 0


def test_what_runs_in_circles_hangs_once_nobody_has_waited_for_long() -> None:
    now = time.monotonic()
    work = Work("a batch", [Waiting(now + 10)], list)
    assert not looks(work, {309.0: frame(), 309.5: frame()}, now)
    assert looks(work, {310.5: frame()}, now)


def test_a_chunks_own_thread_may_stand_in_line_for_the_database_and_wait_for_it_as_long_as_it_is_away() -> None:
    now, still = time.monotonic(), frame()
    in_line = Work("a chunk", [Waiting(now)], still_s=45)
    assert not looks(in_line, {5.0: still, 40.0: still}, now)
    assert looks(in_line, {50.0: still}, now)
    waiting = Work("a chunk", [Waiting(now)], still_s=45)
    assert not looks(waiting, {5.0: frame(), 4000.0: frame()}, now)


def test_the_innermost_call_of_the_thread_is_what_is_looked_at() -> None:
    dog = Watchdog(0.05, lambda _: None, young_s=0.0)
    with in_a_call(lambda: dog.forward("a call that does not return", [])):
        wait_until(dog.look, what="the end of its patience")
        assert [work.what for work in dog.look()] == ["a call that does not return"]
    assert dog.look() == []


def test_a_batcher_has_its_forward_passes_watched_for_those_who_wait_and_those_in_line() -> None:
    model, seen = OrderedModel(limit=1), list[Any]()
    now = time.monotonic()
    first, second = Waiting(now + 1), Waiting(now + 2)

    @contextmanager
    def watch(what: str, waiting: Any, in_line: Any) -> Iterator[None]:
        seen.append((what, list(waiting), in_line))
        yield

    model.gate.clear()
    batcher = Batcher(model, max_wait_s=0.0, watch=watch)
    try:
        held = batcher.submit(Operation.EMBED_TEXT, 1, Priority.NORMAL, owner=first)
        wait_until(lambda: seen, what="the forward pass")
        waits = [batcher.submit(Operation.EMBED_TEXT, number, Priority.NORMAL, owner=second) for number in (2, 3)]
        what, waiting, in_line = seen[0]
        assert (what, waiting, in_line()) == ("embed_text of 1 items by ordered", [first], [second])
        model.gate.set()
        assert [one.result(10) for one in (held, *waits)] == [2, 4, 6]
    finally:
        batcher.close()


HOLDS_THE_INTERPRETERS_LOCK = """
import ctypes, time
from worker.health.watchdog import Watchdog
dog = Watchdog(5.0, lambda works: print("never"))
dog.start()
time.sleep(1.5)
print("asleep", flush=True)
ctypes.PyDLL(None).sleep(600)
"""


def test_a_process_whose_interpreter_is_held_by_native_code_is_ended_too() -> None:
    process = subprocess.run(
        [sys.executable, "-c", HOLDS_THE_INTERPRETERS_LOCK], capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 1
    assert process.stdout == "asleep\n"
    assert "Timeout" in process.stderr
    assert "Thread" in process.stderr
