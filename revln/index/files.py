"""A built index as bytes. Written and read piece by piece, so that it is never in memory twice.

Nothing here believes a file: whoever calls checks the SHA-256 of the very bytes that were read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss

from revln.index.base import IndexType

__all__ = ["map_index", "read_index", "write_index"]

_PIECE_BYTES = 2**20


def write_index(index: Any, write: Callable[[bytes], object]) -> None:
    """Hand the index's bytes to ``write``, in pieces. What that raises comes out as it is (a full disk, a stop)."""
    faiss.write_index(index, faiss.PyCallbackIOWriter(write, _PIECE_BYTES))  # type: ignore[attr-defined]


def read_index(read: Callable[[int], bytes]) -> Any:
    """An index from bytes that ``read(n)`` gives, into memory of its own: a change of the file cannot reach it."""
    return faiss.read_index(faiss.PyCallbackIOReader(read, _PIECE_BYTES))  # type: ignore[attr-defined]


def map_index(kind: IndexType, path: Path) -> Any:
    """An index whose pages the system reads when they are touched. No one else may write to the file while it lives."""
    # Two ways in faiss 1.15: inverted lists know the old flag only, everything else the new one.
    of_lists = kind in (IndexType.IVF, IndexType.IVFPQ)
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP if of_lists else faiss.IO_FLAG_MMAP_IFC)
