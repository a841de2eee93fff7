"""Files that only their owner can read."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["keep_private"]

_OURS = ("revln.db*", "blobs", "redis", "flower*", "up.lock")
_OTHERS = 0o077


def keep_private(data_dir: Path) -> None:
    """Let this process and its children make files for their user alone, and close what older versions left open.

    The data folder itself stays as it is if it was there before us: it may hold other things.
    """
    os.umask(_OTHERS)
    for pattern in _OURS:
        for path in data_dir.glob(pattern):
            with contextlib.suppress(OSError):  # another user's: theirs to close
                mode = path.lstat().st_mode
                if mode & _OTHERS and not path.is_symlink():
                    path.chmod(mode & 0o7700)
