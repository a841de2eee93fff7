"""What an experiment works with: a stack that can be broken, traffic through it, and a note of what was seen."""

from __future__ import annotations

import math
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cached_property
from itertools import count, pairwise
from pathlib import Path
from threading import Event
from typing import Any

import psutil
from sqlalchemy import func, select
from sqlalchemy.engine import make_url

from revln.blobs import BlobStore
from revln.db import tables
from revln.db.engine import Database
from revln.settings import Settings
from tests.chaos.invariants import violations
from tests.chaos.puppet import DIM, FAMILY, OTHER
from tests.chaos.zygote import Zygote
from tests.databases import PostgresqlServer
from tests.stack import Stack, wait_until

__all__ = ["OPEN", "Lab", "LabStack"]

# How soon a death is noticed: what experiments measure with the product's own values, tests with quick ones.
_RECOVERY = ("lease_s", "heartbeat_s", "sweep_s", "republish_s", "shutdown_grace_s", "concurrency")
OPEN = tables.jobs.c.status.in_(["queued", "running"])
_CLIENTS = 4
_WORKERS = ("worker", "second")  # those that experiments start


class LabStack(Stack):
    """A stack whose API and workers are forked, and whose default model is the puppet."""

    def __init__(self, folder: Path, zygote: Zygote, *, quick: bool = False, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FAMILY).mkdir(exist_ok=True)
        (folder / FAMILY / "config.json").write_text("{}")
        own = {} if quick else {name: Settings.model_fields[name].default for name in _RECOVERY}
        puppets = {name: {"family": FAMILY, "source": str(folder / FAMILY)} for name in (FAMILY, OTHER)}
        super().__init__(folder, **{**own, "models": puppets, "default_model": FAMILY, **settings})
        self._zygote = zygote

    def start_api(self, harm: str | None = None) -> None:
        self._fork("api", ["api"], harm=harm)
        wait_until(self._api_answers, what="the API")

    def freeze(self, name: str) -> None:
        """SIGSTOP between two transactions: frozen inside one, it would hold SQLite's only write lock as long as it
        lives (PostgreSQL ends such a transaction after 15 s)."""
        url = make_url(self.settings.resolved_database_url)

        def frozen_outside() -> bool:
            self.send(name, signal.SIGSTOP)
            # On a busy machine it may go on for a moment, and begin a transaction.
            wait_until(lambda: psutil.Process(self.pid(name)).status() == psutil.STATUS_STOPPED, what="its stop")
            if url.get_backend_name() != "sqlite":
                return True
            try:
                with closing(sqlite3.connect(str(url.database), timeout=0.5, isolation_level=None)) as connection:
                    connection.execute("BEGIN IMMEDIATE")
                return True
            except sqlite3.OperationalError:
                self.send(name, signal.SIGCONT)
                return False

        wait_until(frozen_outside, what="a moment without a transaction")

    def _spawn(self, name: str, command: list[str], env: Mapping[str, str] | None = None) -> None:
        if name == "redis":
            super()._spawn(name, command, env)
        else:
            self._fork(name, command[3:], env)

    def _fork(self, name: str, args: list[str], env: Mapping[str, str] | None = None, harm: str | None = None) -> None:
        known = {**self.settings.to_env(), **(env or {})}
        self._processes[name] = self._zygote.fork(args, known, self.folder / f"{name}.log", harm)  # type: ignore[assignment]


class Lab:
    """One experiment at work. ``timed``: its limits of time are asserted; else they are only noted."""

    def __init__(self, folder: Path, database_url: str, seed: str, *, patience_s: float, timed: bool = True) -> None:
        self.folder, self.database_url = folder, database_url
        self.random = random.Random(seed)
        self.patience_s, self.timed = patience_s, timed
        self.figures: dict[str, Any] = {}
        self.faults: list[str] = []
        self.accepted: dict[str, str] = {}  # job → the status in which it must end
        self._upserts: dict[str, int] = {}  # job → item
        self.deaths = 0
        self.blobs: BlobStore | None = None
        self._words, self._items = count(), count(1)
        self._name = f"c{self.random.getrandbits(40):x}"
        self._stack: LabStack | None = None
        self._server: PostgresqlServer | None = None

    # --- what it works with

    @property
    def stack(self) -> LabStack:
        assert self._stack is not None, "this experiment was given no stack"
        return self._stack

    @property
    def server(self) -> PostgresqlServer:
        assert self._server is not None, "this experiment was given no server of its own"
        return self._server

    def use(self, *, stack: LabStack | None = None, server: PostgresqlServer | None = None) -> None:
        self._stack, self._server = stack or self._stack, server or self._server
        if stack is not None:
            self.blobs = BlobStore(stack.settings.resolved_blob_url)

    @cached_property
    def db(self) -> Database:
        return Database(self.database_url)

    @cached_property
    def collection(self) -> str:
        """A collection whose log counts how often an effect was had."""
        self.stack.http.put(f"/v1/collections/{self._name}", json={"dim": DIM}).raise_for_status()
        return self._name

    # --- what it notes

    def expect(self, condition: Any, fault: str) -> None:
        if not condition:
            self.faults.append(fault)

    def within(self, name: str, seconds: float, limit_s: float) -> None:
        """Note a time and hold it against its limit."""
        self.figures[name] = f"{seconds:.1f} s"
        self.expect(not self.timed or seconds <= limit_s, f"{name}: {seconds:.1f} s, at most {limit_s:g} s")

    def until(self, condition: Callable[[], Any], what: str, patience_s: float | None = None) -> Any:
        """Wait; a worker that exits meanwhile is started again, as every supervisor does, and counted."""

        def look() -> Any:
            for name in _WORKERS if self._stack is not None else ():
                if self.stack.ended(name):
                    self.deaths += 1
                    self.stack.start_worker(name)
            return condition()

        return wait_until(look, patience_s or self.patience_s, what)

    # --- traffic

    def text(self, order: str = "") -> str:
        """A text that nobody had before: what is known would be done at once."""
        return f"{order} {self._name} w{next(self._words)}".strip()

    def submit(self, *orders: str, ends: str = "succeeded", **more: Any) -> str:
        """An embed job with an item for each order."""
        return self._post("embed", {"items": [{"text": self.text(order)} for order in orders]}, ends, **more)

    def upsert(self) -> str:
        """An index job that adds one row to the collection's log: done twice, there would be two."""
        number = next(self._items)
        vector = [math.sin(number * (at + 1)) for at in range(DIM)]
        body = {"operation": "upsert", "items": [{"id": f"i{number}", "vector": vector}]}
        job_id = self._post("index", {"collection": self.collection, **body}, "succeeded")
        self._upserts[job_id] = number
        return job_id

    def _post(self, kind: str, body: dict[str, Any], ends: str, **more: Any) -> str:
        answer = self.stack.http.post("/v1/jobs", json={"kind": kind, "input": body, **more})
        assert answer.status_code == 202, f"a submission was answered {answer.status_code}: {answer.text[:300]}"
        job_id = str(answer.json()["id"])
        self.accepted[job_id] = ends
        return job_id

    @contextmanager
    def traffic(self, jobs: int, order: str) -> Iterator[None]:
        """Submit so many jobs beside whatever happens inside the block; every fifth writes to the collection's log."""
        assert self.collection
        with ThreadPoolExecutor(_CLIENTS) as pool:
            started = [pool.submit(self.submit, order) if n % 5 else pool.submit(self.upsert) for n in range(jobs)]
            yield
            for one in started:
                one.result()

    @contextmanager
    def steady_traffic(self, jobs_per_s: float, order: str) -> Iterator[None]:
        """Submit so many jobs a second as long as the block lasts; every fifth writes to the collection's log."""
        assert self.collection
        over = Event()

        def submit() -> None:
            for number in count():
                if over.wait(_CLIENTS / jobs_per_s):
                    return
                if number % 5:
                    self.submit(order)
                else:
                    self.upsert()

        with ThreadPoolExecutor(_CLIENTS) as pool:
            started = [pool.submit(submit) for _ in range(_CLIENTS)]
            try:
                yield
            finally:
                over.set()
            for one in started:
                one.result()

    def ended(self) -> int:
        """How many jobs have ended, of all."""
        with self.db.read() as connection:
            return int(connection.scalar(select(func.count()).select_from(tables.jobs).where(~OPEN)) or 0)

    def open(self) -> int:
        with self.db.read() as connection:
            return int(connection.scalar(select(func.count()).select_from(tables.jobs).where(OPEN)) or 0)

    def wait_for_all(self) -> None:
        self.until(lambda: not self.open(), "the end of every job")

    def chunk(self, job_id: str, number: int = 0) -> Any:
        """The row of a chunk."""
        columns = tables.chunks.c
        with self.db.read() as connection:
            return connection.execute(
                select(tables.chunks).where(columns.job_id == job_id, columns.number == number)
            ).one()

    def starts(self) -> list[float]:
        """When each chunk was last claimed, by the database's clock, in order."""
        with self.db.read() as connection:
            found = connection.scalars(
                select(tables.chunks.c.started_at).where(tables.chunks.c.started_at.is_not(None))
            )
            return sorted(found)

    def longest_pause_s(self) -> float:
        """The longest time in which no chunk was claimed, from the first to the last."""
        return max((after - before for before, after in pairwise(self.starts())), default=0.0)

    def moment(self, most_s: float = 0.05) -> None:
        """Let a random time pass, so that a blow may fall at any point of a job."""
        time.sleep(self.random.uniform(0, most_s))

    # --- the look afterwards

    def inspect(self) -> None:
        """The invariants, and whether each accepted job came to the end that it should."""
        self.faults += violations(self.db, self.blobs, self.accepted)
        with self.db.read() as connection:
            status = dict(connection.execute(select(tables.jobs.c.id, tables.jobs.c.status)).all())
            chunks = tables.chunks.c
            attempts = connection.execute(
                select(func.count(), func.coalesce(func.sum(chunks.attempt), 0)).where(chunks.attempt > 0)
            ).one()
            collections = tables.collections.c
            rows = connection.scalar(select(collections.head_seq).where(collections.name == self._name)) or 0
        ends = self.accepted.items()
        wrong = [f"job {one} is {status.get(one)}, not {end}" for one, end in ends if status.get(one) != end]
        self.faults += wrong[:5]
        if self.accepted:
            self.figures["lost"] = len(wrong)
            self.figures["twice"] = max(0, rows - len(self._upserts))
            self.figures["run again"] = int(attempts[1]) - int(attempts[0])
        if self.deaths:
            self.figures["deaths"] = self.deaths
        self.expect(rows == len(self._upserts), f"{len(self._upserts)} upserts left {rows} rows in the log")

    def close(self) -> None:
        if "db" in self.__dict__:
            self.db.close()
