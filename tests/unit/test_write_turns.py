"""Processes that write to one SQLite take turns, whoever writes most, and never wait long for one who is gone."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from threading import Event, Thread

import pytest

from revln.db import write_turns
from revln.db.engine import Database
from revln.db.write_turns import WriteTurns
from tests.stack import wait_until

ASKED = 20


@contextmanager
def greedy(path: Path) -> Iterator[list[int]]:
    """Somebody who writes all the time; how often, in a list of one."""
    db, wrote, stop = Database(f"sqlite:///{path}"), [0], Event()

    def write() -> None:
        while not stop.is_set():
            with db.write() as connection:
                connection.exec_driver_sql("INSERT INTO t VALUES (1)")
                time.sleep(0.003)
            wrote[0] += 1

    thread = Thread(target=write)
    thread.start()
    try:
        yield wrote
    finally:
        stop.set()
        thread.join()
        db.close()


def test_whoever_writes_all_the_time_lets_another_in_between(tmp_path: Path) -> None:
    path = tmp_path / "revln.db"
    db = Database(f"sqlite:///{path}")
    with db.write() as connection:
        connection.exec_driver_sql("CREATE TABLE t (n INTEGER)")
    waited: list[int] = []
    with greedy(path) as wrote:
        wait_until(lambda: wrote[0], what="the other's first write")
        for _ in range(ASKED):
            before = wrote[0]
            with db.write():
                waited.append(wrote[0] - before)
            wait_until(lambda least=wrote[0]: wrote[0] > least, what="its next write")  # type: ignore[misc]
    db.close()
    assert median(waited) <= 3, waited  # hundreds by SQLite's own waiting


@pytest.mark.parametrize("held", ["next", "turn"])
def test_a_turn_that_does_not_come_is_not_waited_for_again_and_again(held: str, tmp_path: Path) -> None:
    turns = WriteTurns(str(tmp_path / "revln.db"), patience_s=0.2)
    with ExitStack() as frozen:
        file = os.open(tmp_path / f"revln.db-{held}", os.O_RDWR | os.O_CREAT)
        frozen.callback(os.close, file)
        fcntl.flock(file, fcntl.LOCK_EX)
        waits = []
        for _ in range(5):
            started = time.monotonic()
            with turns.turn():
                waits.append(time.monotonic() - started)
    assert waits[0] >= 0.2
    assert max(waits[1:]) < 0.2


def test_a_folder_that_takes_no_file_is_no_reason_not_to_write(tmp_path: Path) -> None:
    with WriteTurns(str(tmp_path / "nowhere" / "revln.db")).turn():
        pass


def test_a_turn_ends_with_an_error_too(tmp_path: Path) -> None:
    turns, others = WriteTurns(str(tmp_path / "revln.db")), WriteTurns(str(tmp_path / "revln.db"))
    with pytest.raises(KeyError), turns.turn():
        raise KeyError
    started = time.monotonic()
    with others.turn():
        assert time.monotonic() - started < write_turns._PATIENCE_S
