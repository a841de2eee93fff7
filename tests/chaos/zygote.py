"""Forks parts of revln from a process that has imported all of it: a start takes a tenth of a second, not six.

``python -m tests.chaos.zygote`` reads orders, one line of JSON each, and answers each with a line. What it forks is
`revln.cli.main` with all that is in it, but for three things: there is the model of `tests.chaos.puppet`; torch, which
no test here needs, is not asked for a device; and an order may name a harm from `HARMS`, done to that process only.

Nothing has used a thread, a connection, faiss or a random number before a fork.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from revln.supervisor import launch

__all__ = ["HARMS", "Forked", "Zygote"]

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a fork takes no threads along
_PRELOADED = (
    "revln.cli.main", "revln.cli.parts", "worker.main", "api.app", "uvicorn", "uvicorn.protocols.http.httptools_impl",
    "uvicorn.lifespan.on", "uvicorn.loops.auto", "celery.apps.worker", "celery.concurrency.thread", "celery.worker",
    "celery.worker.consumer", "celery.app.log", "celery.app.amqp", "celery.events", "celery.app.events",
    "kombu.transport.redis", "sqlalchemy.dialects.sqlite", "sqlalchemy.dialects.postgresql.psycopg", "psycopg",
    "tests.chaos.puppet",
)  # fmt: skip


class Forked:
    """A part, as far as `tests.stack.Stack` wants a Popen."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._zygote.ask(poll=self.pid)["code"]
        return self.returncode

    def wait(self, timeout: float = 60.0) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """The process that forks; make it in the main thread (its life hangs on that thread's), use it from any."""

    def __init__(self) -> None:
        self._lock = Lock()
        command = [sys.executable, "-m", "tests.chaos.zygote"]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**_without_settings(), **_ONE_THREAD},
            process_group=0,  # Ctrl-C is for the tests, which then end this one
        )

    def fork(self, args: Sequence[str], env: Mapping[str, str], log: Path, harm: str | None = None) -> Forked:
        """Run ``revln ARGS`` in a fork."""
        answer = self.ask(fork=list(args), env=dict(env), log=str(log), harm=harm)
        return Forked(self, answer["pid"])

    def ask(self, **order: Any) -> dict[str, Any]:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
            return answer

    def close(self) -> None:
        """End it, and with it whatever of its forks still runs."""
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()


def _without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("REVLN_")}


def _die_at_publish() -> None:
    """Die where a submission is committed and nobody has been told."""
    from api.publisher import Publisher

    Publisher.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]


HARMS = {"die at publish": _die_at_publish}


def _become(order: dict[str, Any], parent: int) -> None:
    """Never comes back: what it runs ends in SystemExit, and that as any interpreter's end."""
    if not launch._die_with_parent() or os.getppid() != parent:
        os._exit(1)
    silence, log = (
        os.open(os.devnull, os.O_RDONLY),
        os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
    )
    for number, handle in enumerate((silence, log, log)):
        os.dup2(handle, number)
    os.environ.update(order["env"])
    if order["harm"]:
        HARMS[order["harm"]]()
    importlib.import_module("revln.cli.main").main(order["fork"])


def _prepare() -> None:
    for name in _PRELOADED:
        importlib.import_module(name)
    importlib.import_module("tests.chaos.puppet").install()
    importlib.import_module("worker.models.loading").choose_device = lambda _: "cpu"  # type: ignore[attr-defined]


def main() -> None:
    _prepare()
    me = os.getpid()
    for line in sys.stdin:
        order = json.loads(line)
        if "fork" in order:
            pid = os.fork()
            if not pid:
                _become(order, me)
            answer: dict[str, Any] = {"pid": pid}
        else:
            ended, status = os.waitpid(order["poll"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if ended else None}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
