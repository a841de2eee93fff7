"""A large collection from its log to its index. ``make bench`` has a million; alone it takes other sizes and types.

Every figure stands beside raw faiss, or beside what it saves; what is compared is measured in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from bench.figure import Figure, in_turns, seconds
from bench.vectors import clustered
from revln.access import DEFAULT_TENANT, OWNER
from revln.blobs import BlobStore
from revln.db.collections.collections import Collection, create_collection, get_collection
from revln.db.collections.log import LogEntry, append_log
from revln.db.collections.snapshots import begin_build, publish
from revln.db.engine import Database
from revln.db.migrate import upgrade
from revln.index.collection import CollectionIndex
from revln.settings import Settings
from worker.index.build_process import Order, build_snapshot
from worker.index.cache import IndexCache

__all__ = ["measure"]

K, QUERIES, SINGLE, BATCH = 10, 200, 40, 2_000
SHARES = (0.5, 0.05, 0.005)


class _Bench:
    """One collection of clustered vectors in a database of its own."""

    def __init__(self, folder: Path, rows: int, dim: int) -> None:
        url = f"sqlite:///{folder / 'bench.db'}"
        upgrade(Settings(database_url=url))
        self.db, self.blobs = Database(url), BlobStore(str(folder / "blobs"))
        self.rows, self.dim = rows, dim
        self.bare: Any = faiss.IndexFlatIP(dim)
        # Of the same clusters as the rows, but none of them.
        self.queries = clustered(QUERIES, dim, seed=-1)
        self.collection, _ = create_collection(self.db, OWNER, "bench", "", f"vectors-{dim}", dim, {})

    def fill(self) -> Figure:
        def write() -> None:
            for start in range(0, self.rows, BATCH):
                rows = clustered(min(BATCH, self.rows - start), self.dim, seed=start)
                self.bare.add(rows)
                entries = [LogEntry("upsert", f"i{start + at}", vector=row.tobytes()) for at, row in enumerate(rows)]
                with self.db.write() as connection:
                    append_log(connection, self.collection.id, entries)

        return Figure("filling the collection, vectors made meanwhile", self.rows / seconds(write), "rows/s")

    def now(self) -> Collection:
        with self.db.read() as connection:
            return get_collection(connection, DEFAULT_TENANT, "bench")

    def build(self, kind: str | None) -> Iterator[Figure]:
        begun = begin_build(self.db, self.collection.id, "bench", 3_600)
        assert begun is not None
        settings = Settings()
        order = Order(
            self.collection.id, self.dim, flat_rows=settings.index_flat_rows, memory_bytes=settings.index_memory_bytes,
            recall=settings.index_recall, type=kind,
        )  # fmt: skip
        made = build_snapshot(self.db, self.blobs, order, nobody)
        with self.db.write() as connection:
            publish(connection, self.collection.id, begun, made, 3)
        indexes: list[CollectionIndex] = []
        started_s = seconds(lambda: indexes.append(IndexCache(self.db, self.blobs).caught_up(self.now())))
        index, name = indexes[0], f"{made.factory}, {self.rows:,} × {self.dim}"
        yield Figure(f"building, {name}", made.build_s, "s")
        yield Figure(
            "cold start from the snapshot", started_s, "s", made.build_s, "building it again", goal=0.1, below=True
        )
        yield Figure("the snapshot's file", made.size_bytes / 1e6, "MB", 4 * self.rows * self.dim / 1e6, "the vectors")
        yield Figure(f"recall@{K}, {name}", self._recall(index, None), "of 1", goal=0.95)
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # one query at a time has no work for two, but faiss waits for both
        ours, bare = in_turns(3, lambda: self._ask(index), self._ask_bare)
        faiss.omp_set_num_threads(threads)
        yield Figure(f"single queries, {name}", SINGLE / ours, "q/s", SINGLE / bare, "faiss.IndexFlatIP", goal=20)
        yield from self._filtered(index)

    def _ask(self, index: CollectionIndex) -> None:
        for query in self.queries[:SINGLE]:
            index.search(query[None], K)

    def _ask_bare(self) -> None:
        for query in self.queries[:SINGLE]:
            self.bare.search(query[None], K)

    def _filtered(self, index: CollectionIndex) -> Iterator[Figure]:
        random = np.random.default_rng(3)
        for share in SHARES:
            allowed = np.sort(random.choice(np.arange(1, self.rows + 1), int(self.rows * share), replace=False))
            yield Figure(f"recall@{K} under a filter of {share:.1%}", self._recall(index, allowed), "of 1", goal=0.95)

    def _recall(self, index: CollectionIndex, allowed: NDArray[np.int64] | None) -> float:
        rows = faiss.rev_swig_ptr(self.bare.get_xb(), self.rows * self.dim).reshape(self.rows, self.dim)
        seqs = np.arange(1, self.rows + 1) if allowed is None else allowed
        _, at = faiss.knn(self.queries, rows if allowed is None else rows[seqs - 1], K, faiss.METRIC_INNER_PRODUCT)
        found = index.search(self.queries, K, allowed=allowed)
        common = [len({seq for seq, _ in hits} & set(row)) for hits, row in zip(found, seqs[at].tolist(), strict=True)]
        return statistics.mean(common) / K


def nobody(step: str) -> None:
    """Hears of a build's steps."""


def measure(rows: int, dim: int, kinds: list[str | None]) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(Path(folder), rows, dim)
        yield bench.fill()
        replayed: list[CollectionIndex] = []
        replay_s = seconds(lambda: replayed.append(IndexCache(bench.db, bench.blobs).caught_up(bench.now())))
        yield Figure("catching up from the log (SQLite)", rows / replay_s, "rows/s", goal=120_000)
        few = bench.queries[:64]
        ours, bare = in_turns(5, lambda: replayed[0].search(few, K), lambda: bench.bare.search(few, K))
        yield Figure("flat search from the log alone, batch 64", 64 / ours, "q/s", 64 / bare, "IndexFlatIP")
        replayed.clear()
        for kind in kinds:
            yield from bench.build(kind)
        bench.db.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.index", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--types", default="auto", help="Comma-separated: auto, flat, hnsw, ivf, ivfpq.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object a line instead of a table.")
    arguments = parser.parse_args()
    kinds = [None if kind == "auto" else kind for kind in arguments.types.split(",")]
    for figure in measure(arguments.rows, arguments.dim, kinds):
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        row = f"{figure.name:58} {figure.ours_text:>20} {figure.bare_text:>34} {ratio:>8} {figure.goal_text}"
        print(json.dumps(figure.as_dict()) if arguments.json else row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
