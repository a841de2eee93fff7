"""One log stream of many parts: each line carries its part's name.

Lines go through a bounded queue to one writing thread. A terminal that was stopped, or a pipe that nobody reads, may
block that thread; it never blocks a part or the stopping of it. What does not fit is counted and said.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from typing import IO

from revln.terminal import visible

__all__ = ["LogStream"]

QUEUE_LINES = 10_000  # about a megabyte; minutes of the chattiest part
COLOURS = (36, 32, 35, 33, 34, 96, 92, 95)  # cyan, green, magenta, yellow, blue and three bright ones
NAME_WIDTH = 8


class LogStream:
    """Write prefixed lines to ``stream``, coloured if it is a terminal and NO_COLOR is not set."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._coloured = self._terminal and not os.environ.get("NO_COLOR")
        self._colours: dict[str, int] = {}
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE_LINES)
        self._dropped = 0
        self._writer = threading.Thread(target=self._write, name="log-writer", daemon=True)
        self._writer.start()

    def line(self, name: str, text: str) -> None:
        try:
            self._lines.put_nowait(f"{self._prefix(name)} {visible(text) if self._terminal else text}\n")
        except queue.Full:
            self._dropped += 1

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, for at most ``timeout_s``."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=timeout_s)
        self._writer.join(timeout_s)

    def _prefix(self, name: str) -> str:
        padded = f"{name:<{NAME_WIDTH}} |"
        if not self._coloured:
            return padded
        colour = self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])
        return f"\x1b[{colour}m{padded}\x1b[0m"

    def _write(self) -> None:
        while (text := self._lines.get()) is not None:
            if self._dropped:
                text = f"{self._prefix('up')} {self._dropped} lines were dropped: this stream was not read\n" + text
                self._dropped = 0
            # The reader may be gone (BrokenPipeError) or the stream closed (ValueError): the parts go on without it.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()
