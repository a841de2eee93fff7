"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make the file beside its name, and give it that name when it is whole and on the disk."""
    partial = path.with_name(path.name + ".part")
    write(partial)
    # safetensors makes its file readable by its owner alone; a service may run as somebody else.
    partial.chmod(0o644)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
