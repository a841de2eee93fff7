"""Blobs in any store that fsspec speaks to: one upload is one atomic put.

No file system object is held: fsspec caches one for each process, so a fork finds none of its parent's connections.
"""

from __future__ import annotations

import io
import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import fsspec

from revln.blobs.files import PLACES
from revln.errors import SettingsError

__all__ = ["RemoteFiles"]

_ONE_PUT_BYTES = 8 * 2**20  # larger ones are uploaded in parts


class _RemoteDraft:
    """The name is the hash, known only at the end, and an object store cannot rename: so the bytes wait here."""

    def __init__(self, files: RemoteFiles) -> None:
        self._files = files
        self.file: IO[bytes] = tempfile.NamedTemporaryFile(prefix="revln-")  # noqa: SIM115 (discard closes it)

    def finish(self, path: str, size: int) -> None:
        self.file.flush()
        self._files.upload(self.file.name, path, size)

    def discard(self) -> None:
        with suppress(OSError):  # as of a local draft
            self.file.close()


class RemoteFiles:
    """Any store of fsspec's. Written whole each time, also where it exists: that renews its time for the collector."""

    def __init__(self, scheme: str, root: str) -> None:
        self._scheme, self._root = scheme, root
        try:
            self._fs()
        except (ValueError, ImportError) as err:
            raise SettingsError(f"REVLN_BLOB_URL={scheme}://… cannot be used: {err}. {PLACES}") from err

    def _fs(self) -> Any:
        # No listing cache: another machine's put must be seen at once.
        return fsspec.filesystem(self._scheme, use_listings_cache=False)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def begin(self) -> _RemoteDraft:
        return _RemoteDraft(self)

    def free_bytes(self) -> int | None:
        return None

    def upload(self, source: str, path: str, size: int) -> None:
        fs, at = self._fs(), self._at(path)
        if size <= _ONE_PUT_BYTES:
            fs.pipe_file(at, Path(source).read_bytes())
        else:
            # Not a file object: leaving one by an exception closes it, and so publishes the half that was written.
            fs.put_file(source, at)
        written = fs.info(at)["size"]
        if written != size:
            raise OSError(f"{written:,} of {size:,} bytes reached the store")

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        try:
            return bytes(self._fs().cat_file(self._at(path), start=start, end=end))
        except FileNotFoundError:
            raise
        except OSError:  # S3 calls a range that begins behind the end an error; a folder does not
            found = self.info(path) if start else None
            if found is not None and start is not None and start >= found[1]:
                return b""
            raise

    def open(self, path: str) -> IO[bytes]:
        if self._scheme == "memory":  # it would hand out the one stored object, position and all, to every reader
            return io.BytesIO(self.read(path))
        file: IO[bytes] = self._fs().open(self._at(path), "rb")
        return file

    def info(self, path: str) -> tuple[datetime, int] | None:
        try:
            found = self._fs().info(self._at(path))
        except FileNotFoundError:
            return None
        return _modified(found), int(found["size"])

    def walk(self, folder: str) -> list[tuple[str, datetime, int]]:
        try:
            found = self._fs().find(self._at(folder), detail=True)
        except FileNotFoundError:
            return []
        return [(name.rpartition("/")[2], _modified(entry), int(entry["size"])) for name, entry in found.items()]

    def delete(self, path: str) -> bool:
        try:
            self._fs().rm_file(self._at(path))
        except (FileNotFoundError, KeyError):  # fsspec's memory store raises the latter when another was quicker
            return False
        return True

    def move(self, path: str, to: str) -> None:
        self._fs().mv(self._at(path), self._at(to))

    def remove_old(self, folder: str, older_than_s: float) -> int:
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        return sum(self.delete(f"{folder}/{name}") for name, at, _ in self.walk(folder) if at < before)


def _modified(entry: dict[str, Any]) -> datetime:
    """When a store says that an object was written; every one has its own word for it."""
    for word in ("LastModified", "last_modified", "mtime", "updated", "modified", "created"):
        value = entry.get(word)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    return datetime.now(UTC)  # unknown: as new as can be, so that no collector takes it for old
