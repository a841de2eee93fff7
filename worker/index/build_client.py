"""The process that builds an index, seen from the worker: started, listened to, and never left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, Any

from revln.errors import Unavailable
from revln.settings import ENV_PREFIX, Settings
from worker.index.build_process import Order

__all__ = ["Said", "builder_process"]

# Its next line, or None if it has said nothing for so many seconds. Raises Unavailable if it died.
Said = Callable[[float], dict[str, Any] | None]


@contextmanager
def builder_process(settings: Settings, order: Order) -> Iterator[Said]:
    """Start `worker.index.build_process` with its order; the process is gone when this ends, and dies with ours."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.index.build_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**inherited, **settings.to_env()},
        text=True,
        process_group=0,  # a terminal's Ctrl-C is the worker's, which then stops it
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines: SimpleQueue[str] = SimpleQueue()
    reader = Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()

    def said(timeout_s: float) -> dict[str, Any] | None:
        try:
            line = lines.get(timeout=timeout_s)
        except Empty:
            return None
        if not line:
            raise Unavailable("The process that built the index died; out of memory, perhaps. It is tried again.")
        found: dict[str, Any] = json.loads(line)
        return found

    try:
        with suppress(BrokenPipeError):  # it is dead already, which its silence will say
            process.stdin.write(json.dumps(asdict(order)) + "\n")
            process.stdin.flush()
        yield said
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.close()


def _read(file: IO[str], lines: SimpleQueue[str]) -> None:
    for line in file:
        lines.put(line)
    lines.put("")
