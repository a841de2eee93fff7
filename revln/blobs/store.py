"""The store: puts, checked reads, ranges, walks and deletes, over a folder or over fsspec."""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, NamedTuple

from revln.blobs.files import PLACES, UNFINISHED, Files
from revln.blobs.local import LocalFiles
from revln.blobs.names import answering, blob_path, check_prefix, is_sha256
from revln.blobs.remote import RemoteFiles
from revln.blobs.writer import BlobWriter, check_room
from revln.errors import ItemInvalid, ItemNotFound, SettingsError

__all__ = ["BlobInfo", "BlobStore"]

_DAMAGED = "_damaged"  # begins with what no prefix may begin with
_COPY_BYTES = 2**20


class BlobInfo(NamedTuple):
    """One stored blob, as `BlobStore.list` finds it."""

    sha256: str
    modified: datetime  # in UTC; the time of the last put
    size_bytes: int


class BlobStore:
    """Thread-safe and fork-safe. ``url``: a path, ``file:///path``, ``memory://…``, ``s3://bucket/prefix``.

    Every method may raise `Unavailable` (retryable): the store does not answer, or the disk is full.
    """

    def __init__(self, url: str, min_free_bytes: int = 0) -> None:
        """Touch nothing yet. ``min_free_bytes``: of the disk, below which nothing more is written.

        Raises:
            SettingsError: no such kind of store, or the package that speaks to it is not installed.
        """
        scheme, found, rest = url.partition("://")
        if "::" in url or not url.strip():
            raise SettingsError(f"REVLN_BLOB_URL={url!r} is not a place for blobs. {PLACES}")
        if not found or scheme in ("file", "local"):
            self._files: Files = LocalFiles(Path(rest if found else url))
        else:
            self._files = RemoteFiles(scheme, rest.rstrip("/"))
        self.url, self._min_free_bytes = url, min_free_bytes

    def put(self, data: bytes, prefix: str = "images") -> str:
        """Store bytes; return their SHA-256. They are on disk when this returns."""
        with self.writer(prefix) as writer:
            writer.write(data)
            return writer.commit()[0]

    def writer(self, prefix: str, max_bytes: int | None = None) -> BlobWriter:
        """Begin a blob that is written piece by piece, as when the pieces arrive in an event loop."""
        return BlobWriter(self._files, check_prefix(prefix), max_bytes, self._min_free_bytes)

    def check_room(self) -> None:
        """Raises StorageFull if nothing more would be written."""
        check_room(self._files, self._min_free_bytes)

    def get(self, sha256: str, prefix: str = "images") -> bytes:
        """Read a blob and check its hash.

        Raises:
            ItemInvalid: ``sha256`` is not 64 lower-case hexadecimal digits.
            ItemNotFound: it is not there, or it was damaged and has now been set aside.
        """
        path = blob_path(sha256, prefix)
        # A remote read may come back short or garbled from a healthy object, so the first mismatch proves nothing.
        for _ in range(2):
            with answering(sha256, prefix):
                data = self._files.read(path)
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
        raise self._set_aside(sha256, prefix, len(data))

    def verify(self, sha256: str, prefix: str = "manifests") -> int:
        """Check the hash of a blob too large for `get`; return its size.

        Raises:
            ItemInvalid, ItemNotFound: as for `get`.
        """
        size = 0
        for _ in range(2):
            digest, size = hashlib.sha256(), 0
            with self.open(sha256, prefix) as file, answering(sha256, prefix):
                while piece := file.read(_COPY_BYTES):
                    digest.update(piece)
                    size += len(piece)
            if digest.hexdigest() == sha256:
                return size
        raise self._set_aside(sha256, prefix, size)

    def open(self, sha256: str, prefix: str = "manifests") -> IO[bytes]:
        """Open a blob for seekable reading. Its hash is not checked: see `verify`.

        Raises:
            ItemInvalid, ItemNotFound: as for `get`.
        """
        path = blob_path(sha256, prefix)
        with answering(sha256, prefix):
            return self._files.open(path)

    def open_checked(self, sha256: str, prefix: str) -> IO[bytes]:
        """Open a blob too large for `get`, whose hash has been checked; a remote one is copied into a temporary file.

        Raises:
            ItemInvalid, ItemNotFound: as for `get`.
        """
        size = 0
        for _ in range(2):
            file, digest, size = self.open(sha256, prefix), hashlib.sha256(), 0
            copy = None if isinstance(self._files, LocalFiles) else tempfile.TemporaryFile(prefix="revln-")  # noqa: SIM115
            with answering(sha256, prefix):
                while piece := file.read(_COPY_BYTES):
                    digest.update(piece)
                    size += len(piece)
                    if copy is not None:
                        copy.write(piece)
            checked = file
            if copy is not None:
                file.close()
                checked = copy
            if digest.hexdigest() == sha256:
                checked.seek(0)
                return checked
            checked.close()
        raise self._set_aside(sha256, prefix, size)

    def read_range(self, sha256: str, prefix: str, offset: int, length: int) -> bytes:
        """Read ``length`` bytes from ``offset``; fewer where the blob ends. The hash is not checked: see `verify`.

        Raises:
            ItemInvalid, ItemNotFound: as for `get`; a negative offset or length is invalid too.
        """
        if offset < 0 or length < 0:
            raise ItemInvalid(f"offset={offset} and length={length} must not be negative.")
        path = blob_path(sha256, prefix)
        with answering(sha256, prefix):
            return self._files.read(path, offset, offset + length) if length else b""

    def info(self, sha256: str, prefix: str = "images") -> BlobInfo | None:
        """What is known of a blob without reading it; None if it is not there."""
        path = blob_path(sha256, prefix)
        with answering(sha256, prefix):
            found = self._files.info(path)
        return None if found is None else BlobInfo(sha256, *found)

    def exists(self, sha256: str, prefix: str = "images") -> bool:
        """Whether a blob is there; its bytes are not looked at."""
        return self.info(sha256, prefix) is not None

    def size(self, sha256: str, prefix: str = "images") -> int:
        """The size in bytes.

        Raises:
            ItemInvalid, ItemNotFound: as for `get`.
        """
        path = blob_path(sha256, prefix)
        with answering(sha256, prefix):
            found = self._files.info(path)
            if found is None:
                raise FileNotFoundError
            return found[1]

    def delete(self, sha256: str, prefix: str = "images", not_since: datetime | None = None) -> bool:
        """Remove a blob; False if it was not there, or was put again after ``not_since``.

        A collector passes the `BlobInfo.modified` it decided on: what somebody has put again meanwhile then stays.
        """
        path = blob_path(sha256, prefix)
        with answering(sha256, prefix):
            found = self._files.info(path)
            if found is None or (not_since is not None and found[0] > not_since):
                return False
            return self._files.delete(path)

    def list(self, prefix: str = "images") -> Iterator[BlobInfo]:
        """Walk all blobs under a prefix, in the order of their names, holding one 256th of the names at a time."""
        check_prefix(prefix)
        for first in range(256):
            with answering(f"{first:02x}…", prefix):
                found = self._files.walk(f"{prefix}/{first:02x}")
            for name, modified, size in sorted(found):
                if is_sha256(name):
                    yield BlobInfo(name, modified, size)

    def remove_unfinished(self, older_than_s: float = 86_400.0) -> int:
        """Remove what writers that died have left behind; return how many files.

        Only in a folder: what is on its way to a remote store waits in the system's temporary folder.
        """
        with answering("unfinished writes", UNFINISHED):
            return self._files.remove_old(UNFINISHED, older_than_s)

    def remove_damaged(self, older_than_s: float = 7 * 86_400.0) -> int:
        """Remove what was set aside so long ago; return how many files."""
        with answering("damaged blobs", _DAMAGED):
            return self._files.remove_old(_DAMAGED, older_than_s)

    def _set_aside(self, sha256: str, prefix: str, size: int) -> ItemNotFound:
        aside = f"{_DAMAGED}/{prefix}-{sha256}-{uuid.uuid4().hex[:8]}"
        with answering(sha256, prefix):
            self._files.move(blob_path(sha256, prefix), aside)
        return ItemNotFound(
            f"The {size:,} stored bytes of {prefix}/{sha256} are damaged: their hash is another. "
            f"They were set aside as {aside}. Upload them again."
        )
