"""One blob on its way in: hashed, counted, and made visible at the end or not at all."""

from __future__ import annotations

import hashlib
from types import TracebackType
from typing import Self

from revln.blobs.files import Files
from revln.blobs.names import answering, blob_path
from revln.errors import PayloadTooLarge, StorageFull

__all__ = ["BlobWriter", "check_room"]

_LOOK_BYTES = 16 * 2**20  # between two looks at how much of the disk is free


def check_room(files: Files, min_free_bytes: int) -> None:
    """Raises StorageFull if less of the disk is free than is to be left for the database and everybody else."""
    if not min_free_bytes:
        return
    with answering("a new blob", "free space"):
        free = files.free_bytes()
    if free is not None and free < min_free_bytes:
        raise StorageFull(
            f"{free:,} bytes of the disk are free, and {min_free_bytes:,} are to stay so (REVLN_MIN_FREE_BYTES). "
            "Delete what is not needed, or let it be given more room."
        )


class BlobWriter:
    """One blob being written. Leaving the ``with`` without `commit` leaves nothing behind. For one thread at a time."""

    def __init__(self, files: Files, prefix: str, max_bytes: int | None, min_free_bytes: int = 0) -> None:
        check_room(files, min_free_bytes)
        self._files, self._prefix, self._max_bytes = files, prefix, max_bytes
        self._min_free_bytes, self._looked_at = min_free_bytes, 0
        self._digest = hashlib.sha256()
        self._size = 0
        with answering("a new blob", prefix):
            self._draft = files.begin()

    def write(self, chunk: bytes) -> None:
        """Add bytes.

        Raises:
            PayloadTooLarge: they would pass the limit.
            StorageFull: too little of the disk would be left.
        """
        self._size += len(chunk)
        if self._max_bytes is not None and self._size > self._max_bytes:
            raise PayloadTooLarge(
                f"Over {self._max_bytes:,} bytes were sent, which is the limit here. Split them, or raise the limit."
            )
        if self._size - self._looked_at > _LOOK_BYTES:
            self._looked_at = self._size
            check_room(self._files, self._min_free_bytes)
        self._digest.update(chunk)
        with answering("a new blob", self._prefix):
            self._draft.file.write(chunk)

    @property
    def sha256(self) -> str:
        """Of what has been written so far."""
        return self._digest.hexdigest()

    @property
    def size_bytes(self) -> int:
        return self._size

    def commit(self) -> tuple[str, int]:
        """Make the blob visible under its hash; return the hash and the size."""
        with answering(self.sha256, self._prefix):
            self._draft.finish(blob_path(self.sha256, self._prefix), self._size)
        return self.sha256, self._size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._draft.discard()
