"""A whole revln of real processes: Redis, API and workers around a database, to be used and broken by tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from revln import embedded_redis
from revln.client import RevlnClient
from revln.db.migrate import upgrade
from revln.redis_clients import connect_redis
from revln.settings import Settings
from revln.supervisor import launch

__all__ = ["DEADLINE_S", "Stack", "running", "running_stack", "wait_until"]

# A machine that is busy with other things may need more.
DEADLINE_S = float(os.environ.get("TEST_DEADLINE_S", "120"))
_POLL_S = 0.02
_Stack = TypeVar("_Stack", bound="Stack")


def wait_until(condition: Callable[[], Any], deadline_s: float = DEADLINE_S, what: str = "the condition") -> Any:
    """Poll until ``condition`` is true and return what it returned. There is no other sleep in the tests."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(_POLL_S)
    raise AssertionError(f"{what} did not come true within {deadline_s:g} s")


class Stack:
    """Starts and kills the parts one by one; everything listens on 127.0.0.1 or on a unix socket."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self._redis = embedded_redis.prepare(folder)
        self.settings = Settings(
            **{
                "data_dir": folder,
                "redis_url": self._redis.url,
                "api_port": embedded_redis.free_port("127.0.0.1"),
                "device": "cpu",
                "concurrency": 4,
                # Recovery within seconds, so that tests of crashes are quick.
                "lease_s": 3.0,
                "heartbeat_s": 1.0,
                "sweep_s": 0.3,
                "republish_s": 1.0,
                "shutdown_grace_s": 5.0,
                **settings,
            }
        )
        self.url = f"http://127.0.0.1:{self.settings.api_port}"
        key = self.settings.api_key.get_secret_value()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False, headers=headers)
        self.client = RevlnClient(self.url, key or None)
        self.redis = connect_redis(self.settings)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_redis(self, *options: str) -> None:
        """``options`` go over what its file says, as in ``--appendonly no``."""
        self._spawn("redis", [*self._redis.command, *options])
        wait_until(lambda: not embedded_redis.ping(self._redis.url), what="Redis")

    def start_api(self) -> None:
        self._spawn("api", self._revln("api"))
        wait_until(self._api_answers, what="the API")

    def start_worker(self, name: str = "worker", env: Mapping[str, str] | None = None) -> None:
        self._spawn(name, self._revln("worker"), env)

    def start(self, name: str) -> None:
        """Start a part that is not among the three, as `revln NAME` does."""
        self._spawn(name, self._revln(name))

    def wait_ready(self) -> None:
        wait_until(lambda: self.http.get("/readyz").status_code == 200, 1.5 * DEADLINE_S, "a worker")

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def kill(self, name: str, sig: int = signal.SIGKILL) -> int:
        """Send a signal that ends the part, and wait for its end; its exit status."""
        process = self._processes.pop(name)
        process.send_signal(sig)
        return process.wait(timeout=DEADLINE_S)

    def send(self, name: str, sig: int) -> None:
        self._processes[name].send_signal(sig)

    def heal(self) -> None:
        """Bring it back to one Redis, one API and one worker, all of them answering."""
        for name in list(self._processes):
            if self._processes[name].poll() is None:
                self.send(name, signal.SIGCONT)
            if name not in ("redis", "api", "worker"):
                self.kill(name)
        for name, start in (("redis", self.start_redis), ("api", self.start_api), ("worker", self.start_worker)):
            if name not in self._processes or self._processes[name].poll() is not None:
                start()
        self.wait_ready()

    def wait_end(self, name: str) -> int:
        """Wait for a part that dies by itself; its exit status."""
        return self._processes.pop(name).wait(timeout=DEADLINE_S)

    def ended(self, name: str) -> bool:
        """Whether a part that was started has exited by itself."""
        return name in self._processes and self._processes[name].poll() is not None

    def revive(self, name: str) -> None:
        """Start a worker again if it has exited: Celery's threads worker sometimes does when Redis dies under it."""
        if self.ended(name):
            self.start_worker(name)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        self.http.close()
        self.client.close()
        self.redis.close()
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def _api_answers(self) -> bool:
        try:
            return self.http.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def _revln(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "revln.cli.main", *args]

    def _spawn(self, name: str, command: list[str], env: Mapping[str, str] | None = None) -> None:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("REVLN_")}
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                # Through the supervisor's launcher: a pytest that is killed leaves nothing behind.
                [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**inherited, **self.settings.to_env(), **(env or {})},
            )


@contextmanager
def running_stack(folder: Path, **settings: Any) -> Iterator[Stack]:
    """Redis, a migrated database, the API and one worker, all of which have answered."""
    folder.mkdir(parents=True, exist_ok=True)
    with running(Stack(folder, **settings)) as stack:
        yield stack


@contextmanager
def running(stack: _Stack) -> Iterator[_Stack]:
    """The same for a stack that was made already."""
    try:
        upgrade(stack.settings)
        stack.start_redis()
        stack.start_api()
        stack.start_worker()
        stack.wait_ready()
        yield stack
    finally:
        stack.stop()
