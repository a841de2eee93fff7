"""One part and its present process: start it, read what it says, end it with all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from revln.supervisor import launch
from revln.supervisor.health import Checkup
from revln.supervisor.log import LogStream

__all__ = ["Part", "PartProcess", "ending"]

REAP_S = 5.0  # after SIGKILL; only a process stuck in the kernel takes longer, and nothing can be done about it
LAST_WORDS_S = 1.0  # for the reading thread to reach the end of what a dead process said
LONGEST_LINE = 65_536


@dataclass(frozen=True, slots=True)
class Part:
    """One process to run. Parts of one ``stop_stage`` stop together; stages stop in rising order."""

    name: str
    command: tuple[str, ...]
    stop_stage: int = 0
    grace_s: float = 10.0  # from SIGTERM to SIGKILL
    hint: str = ""  # the way out if it does not start
    check: Callable[[int], str] | None = None  # what is wrong with its process, now and then asked; "": nothing


class PartProcess:
    """A part, its present process if it has one, and when it is to be started again if it has none."""

    def __init__(self, part: Part, env: Mapping[str, str], log: LogStream) -> None:
        self.part = part
        self.deaths = 0  # in a row
        self.started_at = 0.0
        self.restart_at: float | None = None
        self.checkup = Checkup(part.check) if part.check else None
        self._env = env
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._pump: threading.Thread | None = None

    def spawn(self) -> None:
        """Start it. Call this from the main thread only: see ``launch``."""
        launcher = (sys.executable, "-I", "-S", str(Path(launch.__file__)), str(os.getpid()))
        self.restart_at = None
        self.started_at = time.monotonic()
        process = self._process = subprocess.Popen(  # noqa: S603 - the commands are our own
            launcher + self.part.command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,  # a terminal's Ctrl-C reaches us alone, and we stop the parts in order
        )
        self._pump = threading.Thread(target=self._read, args=(process,), name=f"log-{self.part.name}", daemon=True)
        self._pump.start()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The code of a process that has ended and was not yet finished with; negative: the signal."""
        return self._process.poll() if self._process else None

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def kill_group(self) -> None:
        """Kill the process and whatever it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def finish(self) -> None:
        """Kill what is left, reap it and read its last words."""
        if self._process is None:
            return
        self.kill_group()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(REAP_S)
        if self._pump is not None:
            self._pump.join(LAST_WORDS_S)
            if not self._pump.is_alive() and self._process.stdout is not None:
                self._process.stdout.close()
        self._process = self._pump = None

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        while line := process.stdout.readline(LONGEST_LINE):
            self._log.line(self.part.name, line.decode(errors="replace").rstrip("\r\n"))


def ending(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
