"""A disk with room for so many bytes, for this process alone: a tmpfs in a mount namespace of its own."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

__all__ = ["make_small"]

_NEWNS, _NEWUSER = 0x00020000, 0x10000000  # <linux/sched.h>
_PRIVATE = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE: what is mounted here is seen nowhere else


def make_small(folder: Path, size_bytes: int) -> None:
    """Put an empty file system of ``size_bytes`` in the folder's place.

    Where that is not allowed, no file of this process may grow beyond so many bytes, which fails at the same calls.
    """
    folder.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    own = _NEWNS if user == 0 else _NEWNS | _NEWUSER
    if libc.unshare(own) == 0:
        if own & _NEWUSER:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        private = libc.mount(b"none", b"/", None, _PRIVATE, None) == 0
        options = f"size={size_bytes}".encode()
        if private and libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, options) == 0:
            return
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
