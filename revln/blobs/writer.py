"""One blob on its way in: hashed, counted, and made visible at the end or not at all."""

from __future__ import annotations

import hashlib
from types import TracebackType
from typing import Self

from revln.blobs.files import Files
from revln.blobs.names import answering, blob_path
from revln.errors import PayloadTooLarge

__all__ = ["BlobWriter"]


class BlobWriter:
    """One blob being written. Leaving the ``with`` without `commit` leaves nothing behind. For one thread at a time."""

    def __init__(self, files: Files, prefix: str, max_bytes: int | None) -> None:
        self._files, self._prefix, self._max_bytes = files, prefix, max_bytes
        self._digest = hashlib.sha256()
        self._size = 0
        with answering("a new blob", prefix):
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
