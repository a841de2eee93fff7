"""Start the parts of one machine, keep them running, stop them in order, and leave none behind.

Everything happens in the main thread: the parent-death signal of a part is tied to the thread that started it. Only
reading the parts' output and probing them for an answer have threads of their own, because both may block.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any, Self

from revln.errors import StartupError
from revln.supervisor.log import LogStream
from revln.supervisor.process import Part, PartProcess, ending

__all__ = ["Supervisor"]

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
STEADY_S = 30.0  # a part that ran this long was well: its next death starts the back-off anew
DEATHS_BEFORE_READY = 3  # what dies this often before it ever answered will not mend itself
PROBE_PAUSE_S = 0.1
SAME_SIGNAL_S = 0.5  # a terminal and a wrapper (make, uv run) may each send one for a single Ctrl-C


class _StopRequested(BaseException):
    """A signal asked us to stop. Not an Exception, so that no handler on the way swallows it."""


class Supervisor:
    """A context in which parts run. Leaving it, in whatever way, stops them all.

    Inside it SIGINT, SIGTERM and SIGHUP end whatever waits here; a second one kills every part at once and exits. Once
    it has been left because of a signal, they are ignored: the process is about to end.
    """

    def __init__(self, log: LogStream, env: Mapping[str, str]) -> None:
        self._log = log
        self._env = dict(env)
        self._parts: list[PartProcess] = []
        self._step: PartProcess | None = None
        self._ready = False
        self._signaled_at: float | None = None
        self._old_handlers: dict[int, Any] = {}
        self._old_wakeup = -1
        self._wake_r, self._wake_w = socket.socketpair()
        for end in (self._wake_r, self._wake_w):
            end.setblocking(False)

    def __enter__(self) -> Self:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._old_handlers[signum] = signal.signal(signum, self._on_signal)
        # Without a handler Python would not write SIGCHLD to the wakeup socket, and a death would be seen late.
        self._old_handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self._old_wakeup = signal.set_wakeup_fd(self._wake_w.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            for stage in sorted({process.part.stop_stage for process in self._parts}):
                self._stop([process for process in self._parts if process.part.stop_stage == stage])
        finally:
            self._kill_all()
            signal.set_wakeup_fd(self._old_wakeup)
            for signum, handler in self._old_handlers.items():
                # The second signal of one Ctrl-C may come this late, on a busy machine: with the old handler (the
                # default one) it would kill a process that is ending well. Ignored by the kernel, because Python's own
                # handlers are gone during the interpreter's last steps.
                late = kind is _StopRequested and signum != signal.SIGCHLD
                signal.signal(signum, signal.SIG_IGN if late else handler)
            self._wake_r.close()
            self._wake_w.close()
        return kind is _StopRequested

    def start(self, part: Part) -> None:
        """Start a part and keep it running from now on."""
        process = PartProcess(part, self._env, self._log)
        self._parts.append(process)
        process.spawn()

    def run(self, part: Part, timeout_s: float) -> None:
        """Run a step that must end well before anything else starts.

        Raises:
            StartupError: it failed, or took longer than ``timeout_s``.
        """
        step = self._step = PartProcess(part, self._env, self._log)
        try:
            step.spawn()
            deadline = time.monotonic() + timeout_s
            while step.alive:
                if time.monotonic() > deadline:
                    raise StartupError(f"{part.name} took longer than {timeout_s:g} s.")
                self._tick(0.2)
            if code := step.exit_code:
                raise StartupError(f"{part.name} failed ({ending(code)}); see its lines above. {part.hint}".rstrip())
        finally:
            step.finish()
            self._step = None

    def wait_for(self, name: str, probe: Callable[[], str], timeout_s: float) -> None:
        """Wait until ``probe`` returns "" (until then it returns, or raises, why not).

        Raises:
            StartupError: not within ``timeout_s``, or a part died again and again, or the probe raised one: then it is
                hopeless.
        """
        deadline = time.monotonic() + timeout_s
        reason = "no answer"
        while True:
            answers: list[str | StartupError] = []
            threading.Thread(target=self._ask, args=(probe, answers), name=f"probe-{name}", daemon=True).start()
            while not answers and time.monotonic() < deadline:
                self._tick(1.0)
            answer = answers[0] if answers else reason
            if isinstance(answer, StartupError):
                raise answer
            if not answer:
                break
            reason = answer
            if time.monotonic() > deadline:
                raise StartupError(f"{name} did not answer within {timeout_s:g} s: {reason}")
            again_at = time.monotonic() + PROBE_PAUSE_S
            while (left_s := again_at - time.monotonic()) > 0:
                self._tick(left_s)
        self._log.line("up", f"{name} answers")

    def watch(self) -> None:
        """Keep the parts running until a signal comes."""
        self._ready = True
        while True:
            self._tick(1.0)

    def _ask(self, probe: Callable[[], str], answers: list[str | StartupError]) -> None:
        try:
            answers.append(probe())
        except StartupError as error:
            answers.append(error)
        except Exception as error:  # noqa: BLE001 - whatever went wrong is why it is not ready yet
            answers.append(f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):
            self._wake_w.send(b"\0")

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signaled_at is None:
            self._signaled_at = now
        elif now - self._signaled_at > SAME_SIGNAL_S:
            self._kill_all()
            os._exit(128 + signum)

    def _kill_all(self) -> None:
        for process in (*self._parts, self._step):
            if process is not None:
                process.kill_group()

    def _tick(self, timeout_s: float) -> None:
        """Sleep until something happens, then see to the dead and to those that are due again.

        Raises:
            _StopRequested: a signal has come.
            StartupError: a part died too often before everything was ready.
        """
        if self._signaled_at is None:
            waits = [process.restart_at - time.monotonic() for process in self._parts if process.restart_at is not None]
            self._sleep(max(0.0, min([timeout_s, *waits])))
        if self._signaled_at is not None:
            raise _StopRequested
        for process in self._parts:
            if process.restart_at is not None and process.restart_at <= time.monotonic():
                try:
                    process.spawn()
                except OSError as error:  # no memory or no process slots: the next try may find some
                    self._plan_restart(process, str(error))
            elif (code := process.exit_code) is not None:
                process.finish()
                self._plan_restart(process, ending(code))
            elif self._ready and process.checkup and process.pid and (why := process.checkup.look(process.pid)):
                self._log.line("up", f"{process.part.name} is killed: {why}")
                process.kill_group()

    def _sleep(self, timeout_s: float) -> None:
        select.select([self._wake_r], [], [], timeout_s)
        with contextlib.suppress(BlockingIOError):
            while self._wake_r.recv(4096):
                pass

    def _plan_restart(self, process: PartProcess, how: str) -> None:
        now = time.monotonic()
        if now - process.started_at >= STEADY_S:
            process.deaths = 0
        delay_s = min(FIRST_BACKOFF_S * 2**process.deaths, LONGEST_BACKOFF_S)
        process.deaths += 1
        name = process.part.name
        if not self._ready and process.deaths >= DEATHS_BEFORE_READY:
            raise StartupError(
                f"{name} died {process.deaths} times before everything was ready ({how}); see its lines above. "
                f"{process.part.hint}".rstrip()
            )
        process.restart_at = now + delay_s
        self._log.line("up", f"{name} died ({how}); it starts again in {delay_s:g} s")

    def _stop(self, stage: list[PartProcess]) -> None:
        for process in stage:
            if process.alive:
                self._log.line("up", f"stopping {process.part.name}")
                process.terminate()
        deadline = time.monotonic() + max(process.part.grace_s for process in stage)
        while alive := [process for process in stage if process.alive]:
            if time.monotonic() > deadline:
                names = ", ".join(process.part.name for process in alive)
                self._log.line("up", f"{names} did not stop in time and will be killed")
                break
            self._sleep(0.2)
        for process in stage:
            process.finish()
