"""Run a command that dies with its parent: ``python -I -S launch.py PARENT_PID COMMAND…``.

On Linux the kernel's parent-death signal is set and the command takes this process's place, so that nothing of the
launcher stays. A launcher rather than ``preexec_fn``: that one runs Python between fork and exec of a process with
threads, which may hang. The signal is tied to the *thread* that forked: spawn from the main thread.

Where there is no ``prctl``, this process stays as the command's watcher.

Imports the standard library only: it is started once for each part, and by its path.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

__all__ = ["main"]

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
WATCH_INTERVAL_S = 0.5  # without prctl, a killed supervisor's parts live this much longer


def main(argv: list[str]) -> int:
    parent, command = int(argv[1]), argv[2:]
    if not _die_with_parent():
        return watch(parent, command)
    if os.getppid() != parent:
        return 1  # the parent died before the line above, and nobody will send the signal any more
    # CPython ignores SIGPIPE and exec would hand that on to a command which does not expect it.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    return os.execvp(command[0], command)  # noqa: S606 - the command is the supervisor's own


def _die_with_parent() -> bool:
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def watch(parent: int, command: list[str]) -> int:
    """Run ``command`` and kill the whole process group, ourselves included, once the parent is gone."""
    child = subprocess.Popen(command)  # noqa: S603 - as above
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda number, _frame: child.send_signal(number))
    while os.getppid() == parent:
        try:
            code = child.wait(timeout=WATCH_INTERVAL_S)
        except subprocess.TimeoutExpired:
            continue
        return code if code >= 0 else 128 - code
    os.killpg(0, signal.SIGKILL)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
