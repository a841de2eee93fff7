"""The supervisor, with real processes: what dies comes back, what stops stops in order, and nothing is left behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from revln.errors import StartupError
from revln.supervisor import LogStream, Part, Supervisor, launch

DEADLINE_S = 20.0

SLEEP = "import time; time.sleep(600)"
POLITE = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(9)); print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
WITH_CHILD = (
    "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)']);"
    "print('child', p.pid, flush=True); time.sleep(600)"
)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code)


def eventually(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (found := what()):
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.02)
    return found


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


HEAD = """
import atexit, os, signal, sys
from revln.supervisor import LogStream, Part, Supervisor
log = LogStream(sys.stderr)
with Supervisor(log, os.environ) as supervisor:
"""
TAIL = """
    supervisor.watch()
log.close()
"""


class Outside:
    """A supervisor in a process of its own, which can be signalled and killed; its log is read line by line."""

    def __init__(self, body: str) -> None:
        code = HEAD + textwrap.indent(textwrap.dedent(body).strip(), "    ") + TAIL
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, process_group=0
        )
        assert self.process.stderr is not None
        self.lines = self.process.stderr
        self.seen: list[str] = []

    def read_until(self, wanted: str) -> str:
        for line in self.lines:
            self.seen.append(line)
            if wanted in line:
                return line
        raise AssertionError(f"{wanted!r} did not come; the log was:\n{''.join(self.seen)}")

    def children(self, count: int) -> list[int]:
        own = psutil.Process(self.process.pid)
        eventually(lambda: len(own.children(recursive=True)) >= count)
        return [child.pid for child in own.children(recursive=True)]

    def end(self) -> int:
        for line in self.lines:
            self.seen.append(line)
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def outside() -> Iterator[Callable[[str], Outside]]:
    started: list[Outside] = []

    def start(body: str) -> Outside:
        started.append(Outside(body))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()
        each.lines.close()


def part(name: str, code: str, **options: object) -> str:
    return f"Part({name!r}, (sys.executable, '-S', '-c', {code!r}), **{options!r})"


def test_a_signal_stops_the_parts_stage_by_stage_and_ends_well(outside: Callable[[str], Outside]) -> None:
    stack = outside(
        f"""
        supervisor.start({part("last", SLEEP, stop_stage=2)})
        supervisor.start({part("first", SLEEP, stop_stage=0)})
        supervisor.start({part("middle", SLEEP, stop_stage=1)})
        log.line("up", "started")
        """
    )
    stack.read_until("started")
    children = stack.children(3)
    stack.process.send_signal(signal.SIGTERM)
    assert stack.end() == 0
    stopping = [line.split()[-1] for line in stack.seen if "stopping" in line]
    assert stopping == ["first", "middle", "last"]
    assert all(gone(pid) for pid in children)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_stop_it_too(outside: Callable[[str], Outside], signum: int) -> None:
    stack = outside(f"supervisor.start({part('sleeper', SLEEP)}); log.line('up', 'started')")
    stack.read_until("started")
    stack.process.send_signal(signum)
    assert stack.end() == 0


def test_a_part_that_ignores_sigterm_is_killed_after_its_grace(outside: Callable[[str], Outside]) -> None:
    stack = outside(f"supervisor.start({part('stubborn', STUBBORN, grace_s=0.3)})")
    stack.read_until("| up")
    stack.process.send_signal(signal.SIGTERM)
    assert stack.end() == 0
    assert any("did not stop in time" in line for line in stack.seen)


def test_a_second_signal_kills_at_once(outside: Callable[[str], Outside]) -> None:
    stack = outside(f"supervisor.start({part('stubborn', STUBBORN, grace_s=600)})")
    stack.read_until("| up")
    children = stack.children(1)
    stack.process.send_signal(signal.SIGTERM)
    stack.read_until("stopping")
    eventually(lambda: stack.process.send_signal(signal.SIGTERM) or stack.process.poll() is not None)
    assert stack.process.returncode == 128 + signal.SIGTERM
    eventually(lambda: all(gone(pid) for pid in children))


def test_two_signals_of_one_ctrl_c_count_as_one(outside: Callable[[str], Outside]) -> None:
    stack = outside(f"supervisor.start({part('polite', POLITE)})")
    stack.read_until("| up")
    stack.process.send_signal(signal.SIGINT)
    stack.process.send_signal(signal.SIGTERM)
    assert stack.end() == 0


def test_a_second_signal_that_comes_when_all_has_stopped_changes_nothing(outside: Callable[[str], Outside]) -> None:
    """The sender may be slower than the stopping."""
    stack = outside(
        f"""
        atexit.register(os.kill, os.getpid(), signal.SIGTERM)
        supervisor.start({part("polite", POLITE)})
        """
    )
    stack.read_until("| up")
    stack.process.send_signal(signal.SIGINT)
    assert stack.end() == 0


def test_kill_9_of_the_supervisor_leaves_no_part(outside: Callable[[str], Outside]) -> None:
    stack = outside("\n".join(f"supervisor.start({part(f'part-{n}', STUBBORN)})" for n in range(3)))
    for _ in range(3):
        stack.read_until("| up")
    children = stack.children(3)
    stack.process.kill()
    eventually(lambda: all(gone(pid) for pid in children))


def test_what_a_part_started_is_stopped_with_it(outside: Callable[[str], Outside]) -> None:
    stack = outside(f"supervisor.start({part('parent', WITH_CHILD)})")
    grandchild = int(stack.read_until("child").split()[-1])
    stack.process.send_signal(signal.SIGTERM)
    assert stack.end() == 0
    eventually(lambda: gone(grandchild))


def test_a_part_that_dies_starts_again_after_a_growing_pause(outside: Callable[[str], Outside]) -> None:
    stack = outside(
        f"""
        supervisor.start({part("mortal", "import sys; sys.exit(7)")})
        supervisor.watch()
        """
    )
    assert "died (exit code 7); it starts again in 0.5 s" in stack.read_until("died")
    assert "starts again in 1 s" in stack.read_until("died")
    assert "starts again in 2 s" in stack.read_until("died")
    stack.process.send_signal(signal.SIGTERM)
    assert stack.end() == 0


def test_a_part_that_is_killed_starts_again(outside: Callable[[str], Outside]) -> None:
    stack = outside(f"supervisor.start({part('victim', STUBBORN)})")
    stack.read_until("| up")
    (victim,) = stack.children(1)
    os.kill(victim, signal.SIGKILL)
    assert "SIGKILL" in stack.read_until("died")
    stack.read_until("| up")


def test_a_part_that_is_not_well_is_killed_and_starts_again(outside: Callable[[str], Outside]) -> None:
    stack = outside(
        f"""
        from revln.supervisor import health
        health.CHECK_S = 0.01
        complaints = iter(["once", "", "frozen", "frozen", "frozen"])
        frozen = Part("frozen", (sys.executable, "-S", "-c", {STUBBORN!r}), check=lambda _: next(complaints, ""))
        supervisor.start(frozen)
        supervisor.watch()
        """
    )
    stack.read_until("| up")
    assert "frozen is killed: frozen" in stack.read_until("killed")
    assert "SIGKILL" in stack.read_until("died")
    stack.read_until("| up")
    assert not any("once" in line for line in stack.seen)


def test_a_part_that_keeps_dying_before_all_is_ready_ends_the_start() -> None:
    log = LogStream(io.StringIO())
    with Supervisor(log, os.environ) as supervisor:
        supervisor.start(Part("mortal", python("import sys; sys.exit(3)"), hint="Try a rest."))
        with pytest.raises(StartupError, match=r"mortal died 3 times .*exit code 3.* Try a rest\."):
            supervisor.wait_for("mortal", lambda: "not yet", DEADLINE_S)
    log.close()


def test_waiting_in_vain_says_what_the_probe_said() -> None:
    log = LogStream(io.StringIO())
    with Supervisor(log, {}) as supervisor, pytest.raises(StartupError, match=r"within 0\.2 s: the dog ate it"):
        supervisor.wait_for("it", lambda: "the dog ate it", 0.2)
    log.close()


def test_a_probe_that_raises_is_asked_again_and_a_hopeless_one_is_not() -> None:
    log = LogStream(io.StringIO())
    failures = iter([ConnectionError("refused"), None])

    def probe() -> str:
        failure = next(failures)
        if failure:
            raise failure
        return ""

    def hopeless() -> str:
        raise StartupError("no model")

    with Supervisor(log, {}) as supervisor:
        supervisor.wait_for("it", probe, DEADLINE_S)
        with pytest.raises(StartupError, match="no model"):
            supervisor.wait_for("it", hopeless, DEADLINE_S)
    log.close()


def test_a_step_must_end_well_and_in_time() -> None:
    out = io.StringIO()
    log = LogStream(out)
    with Supervisor(log, os.environ) as supervisor:
        supervisor.run(Part("good", python("print('done')")), DEADLINE_S)
        with pytest.raises(StartupError, match=r"bad failed .exit code 4."):
            supervisor.run(Part("bad", python("import sys; sys.exit(4)")), DEADLINE_S)
        with pytest.raises(StartupError, match=r"slow took longer than 0\.2 s"):
            supervisor.run(Part("slow", python(SLEEP)), 0.2)
    log.close()
    assert "good     | done" in out.getvalue()


def test_the_launcher_does_not_start_a_command_whose_parent_is_gone(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    stranger = os.getppid()
    code = subprocess.call(
        [sys.executable, "-I", "-S", launch.__file__, str(stranger), *python(f"open({str(mark)!r}, 'w')")]
    )
    assert code == 1
    assert not mark.exists()


WATCHED = (
    "import os, sys; from revln.supervisor import launch;"
    "sys.exit(launch.watch(os.getppid(), [sys.executable, '-S', '-c', sys.argv[1]]))"
)


def test_without_prctl_a_watcher_passes_on_signals_and_exit_codes() -> None:
    with subprocess.Popen([sys.executable, "-c", WATCHED, POLITE], stdout=subprocess.PIPE, process_group=0) as watcher:
        assert watcher.stdout is not None
        watcher.stdout.readline()
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(DEADLINE_S) == 9


def test_without_prctl_a_watcher_kills_the_part_once_the_parent_is_gone() -> None:
    starter = (
        "import subprocess as s, sys;"
        "w = s.Popen([sys.executable, '-c', *sys.argv[1:3]], process_group=0, stdout=s.PIPE);"
        "w.stdout.readline(); print(w.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", starter, WATCHED, STUBBORN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        watcher = psutil.Process(int(parent.stdout.readline()))
        family = [watcher.pid, *(child.pid for child in watcher.children())]
        assert len(family) == 2
        parent.kill()
        eventually(lambda: all(gone(pid) for pid in family))


def test_an_unread_log_blocks_nobody_and_says_what_it_dropped() -> None:
    read_end, write_end = os.pipe()
    stream, reader = os.fdopen(write_end, "w"), os.fdopen(read_end)
    log = LogStream(stream)
    for number in range(30_000):
        log.line("chatty", f"{number} {'x' * 40}")
    log.close(timeout_s=0.1)  # nobody reads, the pipe is full: it gives up
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(reader.readlines)
        log.close()
        stream.close()
        assert any("lines were dropped" in line for line in read.result(DEADLINE_S))
    reader.close()


def test_lines_carry_a_coloured_name_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    plain, coloured = io.StringIO(), Terminal()
    for stream in (plain, coloured):
        log = LogStream(stream)
        log.line("api", "hello")
        log.close()
    assert plain.getvalue() == "api      | hello\n"
    assert coloured.getvalue() == "\x1b[36mapi      |\x1b[0m hello\n"
