"""Bytes kept under the name of their SHA-256, in a folder or in any store that fsspec speaks to.

Layout: ``<root>/<prefix>/ab/cd/<sha256>``. A name never changes its meaning, so a put may be repeated and raced.
Nothing is believed on reading: `BlobStore.get` hashes what it read, and sets a damaged file aside.

In a folder a blob is written under another name, flushed, checked and renamed. Elsewhere one upload is one atomic put.
No file system object is held: fsspec caches one for each process, so a fork finds none of its parent's connections.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Protocol, Self

import fsspec

from revln.errors import ItemInvalid, ItemNotFound, PayloadTooLarge, RevlnError, SettingsError, Unavailable

__all__ = ["BlobInfo", "BlobStore", "BlobWriter"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_DAMAGED = "_damaged"  # begins with what no prefix may begin with
_UNFINISHED = "_unfinished"
_COPY_BYTES = 2**20
_ONE_PUT_BYTES = 8 * 2**20  # larger ones are uploaded in parts


class BlobInfo(NamedTuple):
    """One stored blob, as `BlobStore.list` finds it."""

    sha256: str
    modified: datetime  # in UTC; the time of the last put
    size_bytes: int


class BlobStore:
    """Thread-safe and fork-safe. ``url``: a path, ``file:///path``, ``memory://…``, ``s3://bucket/prefix``.

    Every method may raise `Unavailable` (retryable): the store does not answer, or the disk is full.
    """

    def __init__(self, url: str) -> None:
        """Touch nothing yet.

        Raises:
            SettingsError: no such kind of store, or the package that speaks to it is not installed.
        """
        scheme, found, rest = url.partition("://")
        if "::" in url or not url.strip():
            raise SettingsError(f"REVLN_BLOB_URL={url!r} is not a place for blobs. {_PLACES}")
        if not found or scheme in ("file", "local"):
            self._files: _Files = _LocalFiles(Path(rest if found else url))
        else:
            self._files = _RemoteFiles(scheme, rest.rstrip("/"))
        self.url = url

    def put(self, data: bytes, prefix: str = "images") -> str:
        """Store bytes; return their SHA-256. They are on disk when this returns."""
        with self.writer(prefix) as writer:
            writer.write(data)
            return writer.commit()[0]

    def put_stream(
        self, chunks: Iterable[bytes], max_bytes: int | None = None, prefix: str = "manifests"
    ) -> tuple[str, int]:
        """Store a stream without ever holding it in memory; return its SHA-256 and its size.

        Raises:
            PayloadTooLarge: over ``max_bytes``; nothing is kept, and no chunk is asked for after the one that was over.
        """
        with self.writer(prefix, max_bytes) as writer:
            for chunk in chunks:
                writer.write(chunk)
            return writer.commit()

    def writer(self, prefix: str, max_bytes: int | None = None) -> BlobWriter:
        """Begin a blob that is written piece by piece, as when the pieces arrive in an event loop."""
        return BlobWriter(self._files, _check_prefix(prefix), max_bytes)

    def get(self, sha256: str, prefix: str = "images") -> bytes:
        """Read a blob and check its hash.

        Raises:
            ItemInvalid: ``sha256`` is not 64 lower-case hexadecimal digits.
            ItemNotFound: it is not there, or it was damaged and has now been set aside.
        """
        path = _path(sha256, prefix)
        # A remote read may come back short or garbled from a healthy object, so the first mismatch proves nothing.
        for _ in range(2):
            with _answering(sha256, prefix):
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
            with self.open(sha256, prefix) as file, _answering(sha256, prefix):
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
        path = _path(sha256, prefix)
        with _answering(sha256, prefix):
            return self._files.open(path)

    def read_range(self, sha256: str, prefix: str, offset: int, length: int) -> bytes:
        """Read ``length`` bytes from ``offset``; fewer where the blob ends. The hash is not checked: see `verify`.

        Raises:
            ItemInvalid, ItemNotFound: as for `get`; a negative offset or length is invalid too.
        """
        if offset < 0 or length < 0:
            raise ItemInvalid(f"offset={offset} and length={length} must not be negative.")
        path = _path(sha256, prefix)
        with _answering(sha256, prefix):
            return self._files.read(path, offset, offset + length) if length else b""

    def exists(self, sha256: str, prefix: str = "images") -> bool:
        """Whether a blob is there; its bytes are not looked at."""
        path = _path(sha256, prefix)
        with _answering(sha256, prefix):
            return self._files.info(path) is not None

    def size(self, sha256: str, prefix: str = "images") -> int:
        """The size in bytes.

        Raises:
            ItemInvalid, ItemNotFound: as for `get`.
        """
        path = _path(sha256, prefix)
        with _answering(sha256, prefix):
            found = self._files.info(path)
            if found is None:
                raise FileNotFoundError
            return found[1]

    def delete(self, sha256: str, prefix: str = "images", not_since: datetime | None = None) -> bool:
        """Remove a blob; False if it was not there, or was put again after ``not_since``.

        A collector passes the `BlobInfo.modified` it decided on: what somebody has put again meanwhile then stays.
        """
        path = _path(sha256, prefix)
        with _answering(sha256, prefix):
            found = self._files.info(path)
            if found is None or (not_since is not None and found[0] > not_since):
                return False
            return self._files.delete(path)

    def list(self, prefix: str = "images") -> Iterator[BlobInfo]:
        """Walk all blobs under a prefix, in the order of their names, holding one 256th of the names at a time."""
        _check_prefix(prefix)
        for first in range(256):
            with _answering(f"{first:02x}…", prefix):
                found = self._files.walk(f"{prefix}/{first:02x}")
            for name, modified, size in sorted(found):
                if _SHA256.fullmatch(name):
                    yield BlobInfo(name, modified, size)

    def remove_unfinished(self, older_than_s: float = 86_400.0) -> int:
        """Remove what writers that died have left behind; return how many files."""
        with _answering("unfinished writes", _UNFINISHED):
            return self._files.remove_unfinished(older_than_s)

    def _set_aside(self, sha256: str, prefix: str, size: int) -> ItemNotFound:
        aside = f"{_DAMAGED}/{prefix}-{sha256}-{uuid.uuid4().hex[:8]}"
        with _answering(sha256, prefix):
            self._files.move(_path(sha256, prefix), aside)
        return ItemNotFound(
            f"The {size:,} stored bytes of {prefix}/{sha256} are damaged: their hash is another. "
            f"They were set aside as {aside}. Upload them again."
        )


class BlobWriter:
    """One blob being written. Leaving the ``with`` without `commit` leaves nothing behind. For one thread at a time."""

    def __init__(self, files: _Files, prefix: str, max_bytes: int | None) -> None:
        self._files, self._prefix, self._max_bytes = files, prefix, max_bytes
        self._digest = hashlib.sha256()
        self._size = 0
        with _answering("a new blob", prefix):
            self._draft = files.begin()

    def write(self, chunk: bytes) -> None:
        """Add bytes.

        Raises:
            PayloadTooLarge: they would pass the limit.
        """
        self._size += len(chunk)
        if self._max_bytes is not None and self._size > self._max_bytes:
            raise PayloadTooLarge(
                f"Over {self._max_bytes:,} bytes were sent, which is the limit here. Split them, or raise the limit."
            )
        self._digest.update(chunk)
        with _answering("a new blob", self._prefix):
            self._draft.file.write(chunk)

    def commit(self) -> tuple[str, int]:
        """Make the blob visible under its hash; return the hash and the size."""
        sha256 = self._digest.hexdigest()
        with _answering(sha256, self._prefix):
            self._draft.finish(_path(sha256, self._prefix), self._size)
        return sha256, self._size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._draft.discard()


# --- the two kinds of place --------------------------------------------------------------------------------------


class _Draft(Protocol):
    """Bytes on their way into a store."""

    file: IO[bytes]

    def finish(self, path: str, size: int) -> None: ...
    def discard(self) -> None: ...


class _Files(Protocol):
    """What a store must do. Paths are relative; a missing file is a FileNotFoundError."""

    def begin(self) -> _Draft: ...
    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes: ...
    def open(self, path: str) -> IO[bytes]: ...
    def info(self, path: str) -> tuple[datetime, int] | None: ...
    def walk(self, folder: str) -> list[tuple[str, datetime, int]]: ...
    def delete(self, path: str) -> bool: ...
    def move(self, path: str, to: str) -> None: ...
    def remove_unfinished(self, older_than_s: float) -> int: ...


class _LocalDraft:
    """A file of our own name beside the blobs, so that the rename stays within one file system."""

    def __init__(self, root: Path) -> None:
        self._root = root
        folder = root / _UNFINISHED
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{os.getpid()}-{uuid.uuid4().hex}"
        self.file: IO[bytes] = self._path.open("xb")

    def finish(self, path: str, size: int) -> None:
        target = self._root / path
        if _same_bytes(target, path[-64:], size):
            # Already there. Its time is renewed, or a collector that saw only the old one would delete it.
            os.utime(target)
            return
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        written = self._path.stat().st_size
        if written != size:  # a full disk does not always say so
            raise OSError(f"{written:,} of {size:,} bytes reached the disk")
        made = _make_folders(target.parent)
        self._path.replace(target)
        for folder in (target.parent, *made):
            _fsync_folder(folder)

    def discard(self) -> None:
        self.file.close()
        self._path.unlink(missing_ok=True)


class _LocalFiles:
    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def begin(self) -> _LocalDraft:
        return _LocalDraft(self._root)

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

    def remove_unfinished(self, older_than_s: float) -> int:
        before, removed = time.time() - older_than_s, 0
        for path in (self._root / _UNFINISHED).glob("*"):
            try:
                if path.stat().st_mtime < before:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:  # finished or discarded meanwhile
                continue
        return removed


class _RemoteDraft:
    """The name is the hash, known only at the end, and an object store cannot rename: so the bytes wait here."""

    def __init__(self, files: _RemoteFiles) -> None:
        self._files = files
        self.file: IO[bytes] = tempfile.NamedTemporaryFile(prefix="revln-")  # noqa: SIM115 (discard closes it)

    def finish(self, path: str, size: int) -> None:
        self.file.flush()
        self._files.upload(self.file.name, path, size)

    def discard(self) -> None:
        self.file.close()


class _RemoteFiles:
    """Any store of fsspec's. Written whole each time, also where it exists: that renews its time for the collector."""

    def __init__(self, scheme: str, root: str) -> None:
        self._scheme, self._root = scheme, root
        try:
            self._fs()
        except (ValueError, ImportError) as err:
            raise SettingsError(f"REVLN_BLOB_URL={scheme}://… cannot be used: {err}. {_PLACES}") from err

    def _fs(self) -> Any:
        # No listing cache: another machine's put must be seen at once.
        return fsspec.filesystem(self._scheme, use_listings_cache=False)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def begin(self) -> _RemoteDraft:
        return _RemoteDraft(self)

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

    def remove_unfinished(self, older_than_s: float) -> int:  # noqa: ARG002
        return 0  # what waits is in the system's temporary folder, which has its own ways


# --- helpers -----------------------------------------------------------------------------------------------------

_PLACES = "Give a path, file:///path, memory://name or s3://bucket/prefix (that last one needs revln's extra 's3')."


def _path(sha256: str, prefix: str) -> str:
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ItemInvalid(f"{str(sha256)[:80]!r} is not a SHA-256: 64 lower-case hexadecimal digits are.")
    return f"{_check_prefix(prefix)}/{sha256[:2]}/{sha256[2:4]}/{sha256}"


def _check_prefix(prefix: str) -> str:
    if not _PREFIX.fullmatch(prefix):
        raise ItemInvalid(f"{prefix[:80]!r} is not a prefix: a lower-case letter, then letters, digits, - or _.")
    return prefix


@contextmanager
def _answering(name: str, prefix: str) -> Iterator[None]:
    """Turn a missing file into `ItemNotFound`, and whatever else the store's own library raises into `Unavailable`."""
    try:
        yield
    except RevlnError:
        raise
    except FileNotFoundError as err:
        raise ItemNotFound(f"There is no {prefix}/{name} in the blob store. Upload it first.") from err
    except Exception as err:
        # Not the whole message: it may hold a path, a bucket or an endpoint, and this goes to clients.
        reason = type(err).__name__
        if isinstance(err, OSError):
            reason = err.strerror or (str(err) if type(err) is OSError else reason)
        raise Unavailable(f"The blob store failed at {prefix}/{name}: {reason}. Try again.") from err


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
