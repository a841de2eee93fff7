"""Processes to be killed, or to race: ``python -m tests.chaos.nursery URL BLOBS`` forks one for each line it reads.

Forked rather than started, because importing takes a hundred times as long as what they do; nothing has used faiss or
the database before the fork. ``build STEP`` kills itself at that step of a build; ``write SEED COUNT FILE`` changes the
collection and keeps a journal. A blank line waits for all; then the line of their exit statuses is printed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import numpy as np

from revln.access import DEFAULT_TENANT
from revln.blobs import BlobStore
from revln.db.collections import get_collection
from revln.db.engine import Database
from revln.db.log import LogEntry, append_log
from revln.db.results import vectors_to_bytes
from revln.db.snapshots import begin_build, publish
from tests.collections import clustered, order_of
from worker.building import build_snapshot
from worker.indexes import IndexCache

__all__ = ["OWNER", "SHARED"]

OWNER = "job"  # whoever comes next is the same job's next attempt
SHARED = 12  # items that all writers fight for


def _build(db: Database, blobs: BlobStore, step: str) -> None:
    def at(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    with db.read() as connection:
        collection = get_collection(connection, DEFAULT_TENANT, "c")
    begun = begin_build(db, collection.id, OWNER, 30.0)
    assert begun is not None
    at("begun")
    made = build_snapshot(db, blobs, order_of(collection, "hnsw"), at)
    with db.write() as connection:
        publish(connection, collection.id, begun, made, 2)
        at("publishing")
    at("published")


def _write(db: Database, blobs: BlobStore, seed: str, count: str, file: str) -> None:
    with db.read() as connection:
        collection = get_collection(connection, DEFAULT_TENANT, "c")
    random, cache, journal = np.random.default_rng(int(seed)), IndexCache(db, blobs), []
    for number in range(int(count)):
        shared = random.random() < 0.5
        item = f"shared-{random.integers(SHARED)}" if shared else f"own-{seed}-{random.integers(SHARED)}"
        vector = int(seed) * 10_000 + number if random.random() < 0.7 else None
        row = None if vector is None else clustered(1, collection.dim, vector)[0]
        entry = LogEntry("delete", item) if row is None else LogEntry("upsert", item, vector=vectors_to_bytes(row))
        with db.write() as connection:
            (seq,) = append_log(connection, collection.id, [entry])
        if seq is None:
            continue
        journal.append((seq, item, vector))
        index = cache.caught_up(collection)
        assert index.seq >= seq
        if row is not None and not shared:  # read your writes: nobody else changes this one
            assert (seq, 1.0) in [(found, round(score, 4)) for found, score in index.search(row[None], 3)[0]]
    Path(file).write_text(json.dumps(journal))


_WORK = {"build": _build, "write": _write}


def _child(words: list[str]) -> None:
    db = Database(sys.argv[1])
    try:
        _WORK[words[0]](db, BlobStore(sys.argv[2]), *words[1:])
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main() -> None:
    running: list[int] = []
    for line in sys.stdin:
        if words := line.split():
            pid = os.fork()
            if not pid:
                _child(words)
            running.append(pid)
        else:
            print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in running), flush=True)
            running = []


if __name__ == "__main__":
    main()
