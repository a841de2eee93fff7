"""A built index as bytes. Written and read piece by piece, so that it is never in memory twice.

Nothing here believes a file: whoever calls checks the SHA-256 of the very bytes that were read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss

__all__ = ["read_index", "write_index"]

_PIECE_BYTES = 2**20


def write_index(index: Any, write: Callable[[bytes], object]) -> None:
    """Hand the index's bytes to ``write``, in pieces. What that raises comes out as it is (a full disk, a stop)."""
    faiss.write_index(index, faiss.PyCallbackIOWriter(write, _PIECE_BYTES))  # type: ignore[attr-defined]


def read_index(read: Callable[[int], bytes]) -> Any:
    """An index from bytes that ``read(n)`` gives, into memory of its own: a change of the file cannot reach it."""
    return faiss.read_index(faiss.PyCallbackIOReader(read, _PIECE_BYTES))  # type: ignore[attr-defined]
