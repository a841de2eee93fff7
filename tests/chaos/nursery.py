"""Processes to be killed, or to race: ``python -m tests.chaos.nursery URL BLOBS`` forks one for each line it reads.

Forked rather than started, because importing takes a hundred times as long as what they do; nothing has used faiss or
the database before the fork. ``build STEP`` kills itself at that step of a build; ``write SEED COUNT FILE`` changes the
collection and keeps a journal; ``fill BYTES`` builds on a disk with so much room; ``damage SEED FLIPS CUTS FILE`` loads
what it has damaged. A blank line waits for all; then the line of their exit statuses is printed.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from sqlalchemy import update

from revln.access import DEFAULT_TENANT
from revln.blobs import BlobStore
from revln.db import tables
from revln.db.collections.collections import get_collection
from revln.db.collections.log import LogEntry, append_log
from revln.db.collections.snapshots import Snapshot, begin_build, current_snapshot, publish
from revln.db.engine import Database
from revln.db.jobs.results import vectors_to_bytes
from revln.errors import Unavailable
from tests.chaos.small_disk import make_small
from tests.collections import clustered, nobody, order_of
from worker.index.build_process import PREFIX, build_snapshot
from worker.index.cache import IndexCache
from worker.index.load import load_newest

__all__ = ["FULL", "OWNER", "SHARED", "Nursery", "nursery"]

OWNER = "job"  # whoever comes next is the same job's next attempt
SHARED = 12  # items that all writers fight for
FULL = 28  # the exit status of a builder whose disk was full and who noticed

Nursery = Callable[..., list[int]]  # lines → exit statuses


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


def _fill(db: Database, blobs: BlobStore, size: str) -> None:
    with db.read() as connection:
        collection = get_collection(connection, DEFAULT_TENANT, "c")
    begun = begin_build(db, collection.id, OWNER, 30.0)
    assert begun is not None
    make_small(Path(blobs.url), int(size))
    try:
        made = build_snapshot(db, blobs, order_of(collection, "hnsw"), nobody)
    except Unavailable:
        os._exit(FULL)
    with db.write() as connection:
        publish(connection, collection.id, begun, made, 2)


def _damage(db: Database, blobs: BlobStore, seed: str, flips: str, cuts: str, file: str) -> None:
    """Damage the current snapshot's file so often, load it each time, and say what that came to."""
    with db.read() as connection:
        collection = get_collection(connection, DEFAULT_TENANT, "c")
        current = current_snapshot(connection, collection.id)
    assert current is not None
    path = Path(blobs.url) / PREFIX / current.sha256[:2] / current.sha256[2:4] / current.sha256
    whole, chance = path.read_bytes(), random.Random(seed)
    queries = clustered(20, collection.dim, 4_242)
    right = load_newest(db, blobs, collection, lambda *_: None)[0].search(queries, 10)
    seen = {"detected": 0, "wrong": 0}
    for trial in range(int(flips) + int(cuts)):
        damaged = bytearray(whole)
        if trial < int(flips):
            for at in chance.sample(range(len(whole)), min(64, len(whole))):
                damaged[at] ^= chance.randrange(1, 256)
        else:
            del damaged[chance.randrange(len(whole)) :]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged)
        noticed: list[Snapshot] = []
        try:
            index, used = load_newest(db, blobs, collection, lambda *told, to=noticed: to.append(told[1]))
            seen["wrong"] += used == current.id and index.search(queries, 10) != right
        except Unavailable:
            pass  # faiss could not read it: no wrong answer, but nobody asks for a new one either
        seen["detected"] += [one.id for one in noticed] == [current.id]
        with db.write() as connection:
            for table, values in (
                (tables.snapshots, {"state": "ready"}),
                (tables.collections, {"snapshot_id": current.id}),
            ):
                known = current.id if table is tables.snapshots else collection.id
                connection.execute(update(table).where(table.c.id == known).values(**values))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole)
    Path(file).write_text(json.dumps(seen))


_WORK = {"build": _build, "write": _write, "fill": _fill, "damage": _damage}


def _child(words: list[str]) -> None:
    db = Database(sys.argv[1])
    try:
        _WORK[words[0]](db, BlobStore(sys.argv[2]), *words[1:])
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


@contextmanager
def nursery(database_url: str, blobs: Path) -> Iterator[Nursery]:
    """Runs processes beside each other; their exit statuses."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.nursery", database_url, str(blobs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A fork takes no threads along; these would be waited for.
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def run(*lines: str) -> list[int]:
        stdin.write("\n".join(lines) + "\n\n")
        stdin.flush()
        return [int(status) for status in stdout.readline().split()]

    try:
        yield run
    finally:
        stdin.close()
        process.wait()
        stdout.close()


def main() -> None:
    logging.disable()  # of two hundred damaged files each would be told of
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
