"""A collection moves to another model while its worker is killed and clients search and write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from tests.chaos.lab import Lab
from tests.chaos.puppet import DIM, FAMILY, OTHER

pytestmark = pytest.mark.slow

_ITEMS = 150


def test_a_migration_whose_worker_is_killed_ends_once_and_no_search_fails(lab: Lab, tmp_path: Path) -> None:
    name, gate = "moving", tmp_path / "gate"
    put = lab.stack.http.put(f"/v1/collections/{name}", json={"model": FAMILY})
    assert put.json()["dim"] == DIM
    gate.touch()
    write(lab, name, {"id": "gate", "text": f"wait {gate}"}, *(item(number) for number in range(_ITEMS)))
    lab.wait_for_all()
    gate.unlink()
    with searched(lab, name) as seen:
        job = lab.stack.client.submit("index", {"collection": name, "operation": "migrate"}, model=OTHER)
        lab.accepted[job["id"]] = "succeeded"
        lab.until(lambda: lab.chunk(job["id"]).state == "running", "its start")
        kill(lab)  # in the middle: one text is not embedded yet
        write(lab, name, item(_ITEMS))
        lab.until(lambda: lab.chunk(job["id"]).attempt == 2, "its second start")
        gate.touch()
        lab.moment(0.5)
        kill(lab)  # at any moment up to its end, or after it
        write(lab, name, item(_ITEMS + 1))
        lab.stack.client.submit("index", {"collection": name, "operation": "delete", "ids": ["t0"]})
        lab.until(lambda: lab.chunk(job["id"]).state == "succeeded", "its end")
        before = len(seen)
        lab.until(lambda: len(seen) > before + 2, "searches after it")
    lab.wait_for_all()
    assert lab.chunk(job["id"]).crash_count >= 1
    assert set(seen) == {("succeeded", "t7")}
    after = lab.stack.http.get(f"/v1/collections/{name}").json()
    assert (after["model"], after["dim"], after["count"]) == (OTHER, 2 * DIM, _ITEMS + 2)
    for number in (1, _ITEMS - 1, _ITEMS, _ITEMS + 1):
        assert hit(lab, name, number) == ("succeeded", f"t{number}")


def kill(lab: Lab) -> None:
    lab.stack.kill("worker")
    lab.stack.start_worker()


def item(number: int) -> dict[str, str]:
    return {"id": f"t{number}", "text": text(number)}


def text(number: int) -> str:
    return f"sleep 0.002 number{number}"


def write(lab: Lab, name: str, *items: dict[str, str]) -> None:
    job = lab.stack.client.submit("index", {"collection": name, "items": list(items)})
    lab.accepted[job["id"]] = "succeeded"


def hit(lab: Lab, name: str, number: int) -> tuple[str, Any]:
    """How a search for one item ended, and what it found first."""
    asked = {"collection": name, "queries": [{"text": text(number)}], "k": 1}
    job = lab.stack.client.wait(lab.stack.client.submit("search", asked)["id"])
    (query,) = lab.stack.client.result(job["id"])["results"]
    return job["status"], query["hits"][0]["id"] if query.get("hits") else query


@contextmanager
def searched(lab: Lab, name: str) -> Iterator[list[tuple[str, Any]]]:
    """How each search ended, of a client that searches all the time."""
    seen: list[tuple[str, Any]] = []
    over = Event()

    def search() -> None:
        while not over.is_set():
            seen.append(hit(lab, name, 7))

    thread = Thread(target=search)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
