"""Which rows of a collection pass a filter: asked of SQL once, and then only of the rows that came since."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from revln.db.collections.matching import matching_seqs
from revln.db.engine import Database
from revln.jobs.filters import Filter, parse_filter

__all__ = ["Allowed", "FilterCache"]

# Eight bytes a row that passes: 32 filters that let through all of a million rows.
_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Allowed:
    """``seqs``: sorted (N,) rows of the log up to ``seq`` that pass, those that are void by now among them."""

    seqs: NDArray[np.int64]
    seq: int


@dataclass(slots=True)
class _Entry:
    allowed: Allowed = field(default_factory=lambda: Allowed(np.empty(0, dtype=np.int64), 0))
    lock: Lock = field(default_factory=Lock)


class FilterCache:
    """One for a process; the filters that were used last are kept."""

    def __init__(self, db: Database, max_bytes: int = _MAX_BYTES) -> None:
        self._db = db
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        self._lock = Lock()

    def allowed(
        self, collection_id: str, filter_json: dict[str, Any], at_least: int, between: Callable[[], None]
    ) -> Allowed:
        """Return the rows that pass, of the log up to row ``at_least`` or further.

        What was found is kept also if looking for the rest fails. ``between``: as of `matching_seqs`. Raises TooCostly.
        """
        # By the JSON and not by what was read from it: in Python, true and 1 are one key.
        key = (collection_id, json.dumps(filter_json, sort_keys=True))
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            self._catch_up(entry, collection_id, parse_filter(filter_json), at_least, between)
            found = entry.allowed
        self._shrink(key)
        return found

    def _catch_up(
        self, entry: _Entry, collection_id: str, wanted: Filter, at_least: int, between: Callable[[], None]
    ) -> None:
        known, parts, seq = entry.allowed, [entry.allowed.seqs], entry.allowed.seq
        try:
            for found, to_seq in matching_seqs(self._db, collection_id, wanted, known.seq, at_least, between):
                parts.append(found)
                seq = to_seq
        finally:
            if seq > known.seq:
                entry.allowed = Allowed(np.concatenate(parts), seq)

    def _shrink(self, used: tuple[str, str]) -> None:
        with self._lock:
            size = sum(entry.allowed.seqs.nbytes for entry in self._entries.values())
            for key in list(self._entries):
                if size <= self._max_bytes or key == used:
                    return
                size -= self._entries.pop(key).allowed.seqs.nbytes
