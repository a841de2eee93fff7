"""Figures of single parts, in this process: the flat index, the collection's log."""

from __future__ import annotations

import tempfile
from pathlib import Path

import faiss
import numpy as np

from bench.figure import Figure, median_seconds, seconds
from revln.db.collections import create_collection
from revln.db.engine import Database
from revln.db.log import LogEntry, append_log, read_log
from revln.db.migrate import upgrade
from revln.index.collection import CollectionIndex
from revln.settings import Settings

__all__ = ["measure"]

ROWS, DIM, BATCH, K = 100_000, 256, 64, 10
LOG_ROWS, LOG_BATCH = 20_000, 500


def _unit(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, DIM), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def measure() -> list[Figure]:
    return [_flat_search(), *_log()]


def _flat_search() -> Figure:
    stored, queries = _unit(ROWS, 0), _unit(BATCH, 1)
    index = CollectionIndex(DIM)
    index.apply(np.arange(1, ROWS + 1), stored, np.array([], dtype=np.int64), ROWS)
    bare = faiss.IndexFlatIP(DIM)
    bare.add(stored)
    ours_s = median_seconds(7, lambda: index.search(queries, K))
    bare_s = median_seconds(7, lambda: bare.search(queries, K))
    return Figure("flat search, 100k × 256, batch 64", BATCH / ours_s, "q/s", BATCH / bare_s, "faiss.IndexFlatIP")


def _log() -> list[Figure]:
    """On SQLite, in chunks as the index handler writes them, each committed by itself."""
    raw = [row.astype("<f4").tobytes() for row in _unit(LOG_ROWS, 2)]
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'bench.db'}"
        upgrade(Settings(database_url=url))
        db = Database(url)
        collection, _ = create_collection(db, "bench", "m", "f", DIM, {})

        def append() -> None:
            for start in range(0, LOG_ROWS, LOG_BATCH):
                entries = [LogEntry("upsert", f"i{start + at}", vector=v) for at, v in
                           enumerate(raw[start : start + LOG_BATCH])]  # fmt: skip
                with db.write() as connection:
                    append_log(connection, collection.id, entries)

        def replay() -> None:
            index = CollectionIndex(DIM)
            with db.read() as connection:
                while (page := read_log(connection, collection.id, index.seq, DIM)).head_seq != index.seq:
                    index.apply(page.seqs, page.vectors, page.void, page.head_seq)

        appended_s, replayed_s = seconds(append), median_seconds(3, replay)
        db.close()
    return [
        Figure("appending to a collection's log (SQLite)", LOG_ROWS / appended_s, "rows/s"),
        Figure("catching up from the log (SQLite)", LOG_ROWS / replayed_s, "rows/s"),
    ]
