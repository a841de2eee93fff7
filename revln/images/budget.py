"""How much memory the decoding of pictures takes at once in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock

__all__ = ["held"]

_door = Lock()  # those who wait stand in a line: a large picture is not passed by small ones for ever
_changed = Condition()
_taken: list[int] = []


@contextmanager
def held(size_bytes: int, most_bytes: int) -> Iterator[None]:
    """Wait until this many bytes more are no more than ``most_bytes`` in all; a larger picture is decoded alone.

    A 46-byte WebP of one colour claims 450 MB (measured), and every thread of an API may be given one.
    """
    with _door, _changed:
        _changed.wait_for(lambda: not _taken or sum(_taken) + size_bytes <= most_bytes)
        _taken.append(size_bytes)
    try:
        yield
    finally:
        with _changed:
            _taken.remove(size_bytes)
            _changed.notify_all()
