"""Databases that break off, and one whose only lock is held."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Event

import httpx
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from tests.chaos.experiment import experiment
from tests.chaos.lab import Lab

__all__: list[str] = []


class _Clients:
    """Clients that go on submitting and reading whatever they are told, and count what that was."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._over = lab, Event()
        self.answers: Counter[int | str] = Counter()
        self.slowest_s = 0.0
        self.words: set[str] = set()

    @contextmanager
    def at_work(self, number: int) -> Iterator[None]:
        with ThreadPoolExecutor(number) as pool:
            started = [pool.submit(self._work) for _ in range(number)]
            try:
                yield
            finally:
                self._over.set()
            for one in started:
                one.result()

    def _work(self) -> None:
        http = self._lab.stack.http
        while not self._over.is_set():
            body = {"kind": "embed", "input": {"items": [{"text": self._lab.text("sleep 0.002")}]}}
            if (answer := self._ask(lambda body=body: http.post("/v1/jobs", json=body))) is None:
                continue
            if answer.status_code == 202:
                job_id = str(answer.json()["id"])
                self._lab.accepted[job_id] = "succeeded"
                self._ask(lambda job_id=job_id: http.get(f"/v1/jobs/{job_id}"))
            self._over.wait(0.05)

    def _ask(self, ask) -> httpx.Response | None:  # type: ignore[no-untyped-def]
        at = time.monotonic()
        try:
            answer: httpx.Response = ask()
        except httpx.TransportError as err:
            self.answers[type(err).__name__] += 1
            return None
        self.slowest_s = max(self.slowest_s, time.monotonic() - at)
        self.answers[answer.status_code] += 1
        if answer.status_code >= 400:
            self.words.add(answer.text)
        return answer


@experiment(
    9, "PostgreSQL stopped at once and restarted; its backends terminated", databases=("postgresql",), own_server=True
)
def postgresql_breaks_off(lab: Lab, *, restarts: int = 5, backends: int = 50, down_s: float = 2.0) -> None:
    clients = _Clients(lab)
    with clients.at_work(4):
        for _ in range(restarts):
            _let_some_pass(lab)
            lab.server.stop_immediately()
            lab.moment(2 * down_s)
            lab.server.start()
        left = backends
        admin = create_engine(make_url(lab.database_url).set(database="postgres"), isolation_level="AUTOCOMMIT")
        while left > 0:
            _let_some_pass(lab, 3)
            with admin.connect() as connection:
                left -= int(connection.scalar(text(_TERMINATE), {"name": make_url(lab.database_url).database}) or 0)
        admin.dispose()
        _let_some_pass(lab)
    lab.wait_for_all()
    lab.figures |= {"accepted": len(lab.accepted), "answers": dict(sorted(clients.answers.items(), key=str))}
    wrong = set(clients.answers) - {200, 202, 503}
    lab.expect(not wrong, f"the API answered {wrong}: {' '.join(sorted(clients.words))[:500]}")


_TERMINATE = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = :name AND pid <> pg_backend_pid()
"""


def _let_some_pass(lab: Lab, jobs: int = 10) -> None:
    """Until so many more jobs were accepted: each blow falls on a service that works."""
    before = len(lab.accepted)
    lab.until(lambda: len(lab.accepted) >= before + jobs, f"{jobs} more jobs accepted")
    lab.moment()


@experiment(10, "SQLite's write lock held by somebody else", databases=("sqlite",), short={"held_s": 1.0})
def lock_held(lab: Lab, *, held_s: float = 10.0, clients: int = 8) -> None:
    busy = _Clients(lab)
    with busy.at_work(clients):
        _let_some_pass(lab)
        url = make_url(lab.database_url)
        with closing(sqlite3.connect(str(url.database), timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(held_s)  # the experiment itself
            connection.execute("ROLLBACK")
        _let_some_pass(lab)
    lab.wait_for_all()
    wrong = set(busy.answers) - {200, 202}
    lab.expect(not wrong, f"the API answered {wrong}: {' '.join(sorted(busy.words))[:500]}")
    for part in ("api", "worker"):
        lab.expect("locked" not in lab.stack.log(part), f"the log of {part} says that the database is locked")
    lab.figures |= {"accepted": len(lab.accepted), "slowest answer": f"{busy.slowest_s:.1f} s"}
