"""How much memory there is, whether it ran out, and what the C library does with what torch frees on a CPU."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

__all__ = [
    "give_back_freed_memory",
    "give_back_large_blocks",
    "host_memory_bytes",
    "keep_freed_memory",
    "out_of_memory",
]

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST = 2**30
_LARGE_BLOCK = 4 * 2**20
# What a container may use (cgroup v2, then v1); "max" or a huge number: no limit.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def host_memory_bytes() -> int:
    """Of this machine, or as much of it as this container may use."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _LIMITS):
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def out_of_memory(err: BaseException) -> bool:
    """Whether that is what the error says: a GPU's is torch.OutOfMemoryError, a CPU's a plain RuntimeError of torch."""
    said = str(err).lower()
    return isinstance(err, MemoryError) or "out of memory" in said or "can't allocate memory" in said


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for the next tensor, instead of giving it back to the kernel; False: not glibc.

    Each activation of a batch is megabytes: freed to the kernel, it comes back as pages that must be zeroed one by one.
    Kept, a forward pass of revln-tiny took under half the time (38 → 100 pictures/s on two cores), a training step of
    MobileNetV2 half (70 → 137). Call it before there are threads: each would have an arena of its own, in which no
    block is larger than 64 MiB, so that larger ones still went to the kernel and back (45 pictures/s).
    """
    mallopt = _libc("mallopt")
    wanted = ((_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _LARGEST), (_M_ARENA_MAX, 1))
    return mallopt is not None and all(mallopt(option, value) for option, value in wanted)


def give_back_large_blocks() -> bool:
    """Have large blocks go to the kernel as soon as they are freed; False: not glibc.

    By itself glibc raises its threshold to 32 MiB once such a block was freed. Pillow's are of 16 MiB, so that every
    thread that ever decoded a large picture keeps its memory: eight of them 960 MB, of which 450 were ever in use.
    """
    mallopt = _libc("mallopt")
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK))


def give_back_freed_memory() -> None:
    """Once, after something large was freed for good."""
    if (malloc_trim := _libc("malloc_trim")) is not None:
        malloc_trim(0)


def _libc(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        return None
