"""Freed memory is kept for the next tensor, and given back when asked: in processes of their own, as it is for good."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tunes glibc's malloc")

# As the batcher does: from a thread, blocks larger than a thread's own arena could hold.
_PROGRAM = """
import ctypes, resource, threading
from revln.models.memory import give_back_freed_memory, keep_freed_memory

SIZE = 100 * 2**20
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def touch():
    block = libc.malloc(SIZE)
    ctypes.memset(block, 1, SIZE)
    libc.free(block)

def run():
    touch()
    before = faults()
    for _ in range(5):
        touch()
    print(faults() - before)

if {keep}:
    assert keep_freed_memory()
thread = threading.Thread(target=run)
thread.start()
thread.join()
kept = resident()
give_back_freed_memory()
print(kept - resident())
"""


def run(keep: bool) -> tuple[int, int]:
    """(page faults of five more passes, bytes given back at the end)"""
    program = _PROGRAM.replace("{keep}", str(keep))
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    faults, given_back = map(int, out.stdout.split())
    return faults, given_back


def test_freed_memory_is_kept_until_it_is_asked_for() -> None:
    faults, given_back = run(keep=True)
    assert faults < 100
    assert given_back > 90 * 2**20


def test_by_itself_glibc_gives_it_back_each_time() -> None:
    """Else there would be nothing to gain."""
    faults, given_back = run(keep=False)
    assert faults > 200
    assert given_back < 10 * 2**20
