"""The thumbnails made last, for a page that shows the same ones again."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

__all__ = ["ThumbnailCache"]

_MOST_BYTES = 32 * 2**20  # about 3,000 of 200 pixels, the size of a page's
_Name = tuple[str, str, int]


class ThumbnailCache:
    """By tenant, picture and width; shared by threads.

    By tenant, because the time of an answer would tell one tenant what pictures another has.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = Lock()
        self._kept: OrderedDict[_Name, bytes] = OrderedDict()
        self._size_bytes = 0

    def get(self, name: _Name) -> bytes | None:
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def put(self, name: _Name, data: bytes) -> None:
        with self._lock:
            self._size_bytes += len(data) - len(self._kept.pop(name, b""))
            self._kept[name] = data
            while self._size_bytes > self._most_bytes:
                self._size_bytes -= len(self._kept.popitem(last=False)[1])
