"""Blobs in a folder: written under another name, flushed, checked and renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from revln.blobs.files import UNFINISHED

__all__ = ["LocalFiles"]


class _LocalDraft:
    """A file of our own name beside the blobs, so that the rename stays within one file system."""

    def __init__(self, root: Path) -> None:
        self._root = root
        folder = root / UNFINISHED
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{os.getpid()}-{uuid.uuid4().hex}"
        self.file: IO[bytes] = self._path.open("xb")

    def finish(self, path: str, size: int) -> None:
        target = self._root / path
        # On the disk before it is known whether it is there: else whoever sends it could tell by the time that somebody
        # else has it.
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if _same_bytes(target, path[-64:], size):
            # Already there. Its time is renewed, or a collector that saw only the old one would delete it.
            os.utime(target)
            return
        written = self._path.stat().st_size
        if written != size:  # a full disk does not always say so
            raise OSError(f"{written:,} of {size:,} bytes reached the disk")
        made = _make_folders(target.parent)
        self._path.replace(target)
        for folder in (target.parent, *made):
            _fsync_folder(folder)

    def discard(self) -> None:
        with suppress(OSError):  # on a full disk: it writes what it still holds, fails, and is closed all the same
            self.file.close()
        self._path.unlink(missing_ok=True)


class LocalFiles:
    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def begin(self) -> _LocalDraft:
        return _LocalDraft(self._root)

    def free_bytes(self) -> int | None:
        folder = next(one for one in (self._root, *self._root.parents) if one.exists())
        return shutil.disk_usage(folder).free

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        with (self._root / path).open("rb") as file:
            file.seek(start or 0)
            return file.read() if end is None else file.read(end - (start or 0))

    def open(self, path: str) -> IO[bytes]:
        return (self._root / path).open("rb")

    def info(self, path: str) -> tuple[datetime, int] | None:
        try:
            found = (self._root / path).stat()
        except FileNotFoundError:
            return None
        return datetime.fromtimestamp(found.st_mtime, UTC), found.st_size

    def walk(self, folder: str) -> list[tuple[str, datetime, int]]:
        paths = (self._root / folder).glob("*/*")
        found = ((path.name, self.info(str(path))) for path in paths)  # an absolute path: joining leaves it as it is
        return [(name, *info) for name, info in found if info is not None]

    def delete(self, path: str) -> bool:
        try:
            (self._root / path).unlink()
        except FileNotFoundError:
            return False
        return True

    def move(self, path: str, to: str) -> None:
        target = self._root / to
        target.parent.mkdir(parents=True, exist_ok=True)
        (self._root / path).replace(target)
        os.utime(target)  # what is kept for a while is kept from now on

    def remove_old(self, folder: str, older_than_s: float) -> int:
        before, removed = time.time() - older_than_s, 0
        for path in (self._root / folder).glob("*"):
            try:
                if path.stat().st_mtime < before:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:  # finished or discarded meanwhile
                continue
        return removed


def _same_bytes(path: Path, sha256: str, size: int) -> bool:
    try:
        if path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder; return those whose entries changed, for their fsync."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
    return [each.parent for each in missing]


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
