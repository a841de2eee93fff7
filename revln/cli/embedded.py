"""A whole stack for the length of a `with`: `revln up` as a child, on free ports, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from revln.errors import StartupError
from revln.supervisor import launch

__all__ = ["Stack", "embedded_stack"]

STOP_S = 90.0  # more than the graces of all parts together
LAST_LINES = 15


@dataclass(frozen=True, slots=True)
class Stack:
    """Where the parts of a running stack answer."""

    api_url: str
    flower_url: str
    log: Path


@contextmanager
def embedded_stack(workers: int = 1) -> Iterator[Stack]:
    """Start everything, hand out the addresses, and stop it all; if we die, it dies with us.

    Raises:
        StartupError: it did not come up; the message ends with the log's last lines.
    """
    with tempfile.TemporaryDirectory(prefix="revln-") as name:
        folder = Path(name)
        log = folder / "up.log"
        command = [sys.executable, "-P", "-m", "revln.cli.main", "up", "--api-port", "0", "--flower-port", "0"]
        command += ["--data-dir", str(folder / "data"), "--workers", str(workers)]
        launcher = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid())]
        with log.open("w") as stderr:
            process = subprocess.Popen(  # noqa: S603 - our own command
                launcher + command, stdout=subprocess.PIPE, stderr=stderr, text=True, process_group=0
            )
        try:
            yield _read_addresses(process, log)
        finally:
            _stop(process)


def _read_addresses(process: subprocess.Popen[str], log: Path) -> Stack:
    found: dict[str, str] = {}
    assert process.stdout is not None
    for line in process.stdout:
        name, _, url = line.strip().partition(": ")
        found[name] = url
        if name == "ready":
            return Stack(url, found.get("flower", ""), log)
    last = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
    raise StartupError(f"revln up ended before it was ready. Its last lines:\n{last}")


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its parts die with it
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
