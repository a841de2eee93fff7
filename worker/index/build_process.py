"""Build a snapshot of a collection: a process of its own, ``python -m worker.index.build_process``.

So that searches in the worker keep their processor time and memory; and if this one dies for want of memory, only the
build is lost. It reads its order, one line of JSON, and prints the name of each step, then what it made or why it could
not. It ends when its standard input does, that is, with the worker.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from revln.blobs import BlobStore
from revln.db.collections.log import head_seq, newest_seqs, read_log, read_vectors
from revln.db.collections.snapshots import Made
from revln.db.engine import Database
from revln.errors import JobError, NotFound, RevlnError
from revln.index.base import IndexType
from revln.index.build import build
from revln.index.files import write_index
from revln.index.plan import make_plan
from revln.settings import Settings

__all__ = ["PREFIX", "LogSource", "Order", "build_snapshot"]

PREFIX = "snapshots"  # in the blob store
_PAGE_ROWS = 8_192
_NICENESS = 5  # searches first
_REPORT_S = 1.0

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be built. ``type``, ``lists``, ``links``: None chooses by size and memory."""

    collection_id: str
    dim: int
    flat_rows: int
    memory_bytes: int
    recall: float
    type: str | None = None
    lists: int | None = None
    links: int | None = None


class LogSource:
    """A collection's live rows as they are when this is made (`revln.index.build.Source`)."""

    def __init__(self, db: Database, collection_id: str, dim: int) -> None:
        self._db, self._collection_id, self.dim = db, collection_id, dim
        with db.read() as connection:
            # In this order: what an item's row is replaced by meanwhile lies behind seq, and is replayed.
            self.seq = head_seq(connection, collection_id)
            seqs = newest_seqs(connection, collection_id)
        self.seqs = seqs[seqs <= self.seq]

    def read(self, seqs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        with self._db.read() as connection:
            return read_vectors(connection, self._collection_id, seqs, self.dim)

    def stream(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        after = 0
        while after < self.seq:
            # A transaction for each page: one that lasts as long as a build would keep every old row alive.
            with self._db.read() as connection:
                page = read_log(connection, self._collection_id, after, self.dim, _PAGE_ROWS)
            if page.head_seq == after:
                return  # the collection was deleted
            after = page.head_seq
            at = np.searchsorted(self.seqs, page.seqs)
            at[at == len(self.seqs)] = 0
            live = self.seqs[at] == page.seqs
            if live.any():
                yield page.seqs[live], page.vectors[live]


def build_snapshot(db: Database, blobs: BlobStore, order: Order, step: Step) -> Made:
    """Read, train, add, measure, write; ``step`` hears of each before it begins, and may end it by raising.

    Raises:
        NotFound: the collection was deleted.
        JobError: it is empty, the index would take too much memory, or no breadth of search finds enough.
        Unavailable: the database or the blob store does not answer, or the disk is full.
    """
    started = time.perf_counter()
    step("read")
    source = LogSource(db, order.collection_id, order.dim)
    if not len(source.seqs):
        raise JobError("The collection is empty: there is nothing to build an index of.")
    kind = None if order.type is None else IndexType(order.type)
    plan = make_plan(
        kind, len(source.seqs), order.dim, flat_rows=order.flat_rows, memory_bytes=order.memory_bytes,
        lists=order.lists, links=order.links,
    )  # fmt: skip
    built = build(source, plan, order.recall, step)
    if built.count != len(source.seqs):
        raise NotFound("The collection was deleted while its index was built.")
    step("write")
    with blobs.writer(PREFIX) as writer:
        write_index(built.index, writer.write)
        step("flush")
        sha256, size = writer.commit()
    step("publish")
    return Made(
        type=plan.kind.value,
        factory=plan.factory,
        parameters={"width": built.breadth.width, "rerank": built.breadth.rerank},
        up_to_seq=built.seq,
        count=built.count,
        sha256=sha256,
        size_bytes=size,
        recall=built.recall,
        qps=built.qps,
        exact_qps=built.exact_qps,
        build_s=time.perf_counter() - started,
    )


class _Reporter:
    """Prints each step once, and now and then that it goes on."""

    def __init__(self) -> None:
        self._name, self._at = "", 0.0

    def __call__(self, name: str) -> None:
        now = time.monotonic()
        if name != self._name or now - self._at > _REPORT_S:
            self._name, self._at = name, now
            _say({"step": name})


def _say(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


def _end_with_the_worker() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    order = Order(**json.loads(sys.stdin.readline()))
    Thread(target=_end_with_the_worker, daemon=True).start()
    os.nice(_NICENESS)
    settings = Settings.from_env()
    db = Database(settings.resolved_database_url)
    try:
        _say({"made": asdict(build_snapshot(db, BlobStore(settings.resolved_blob_url), order, _Reporter()))})
    except RevlnError as err:
        _say({"error": {"code": err.code, "message": err.message}})
    except MemoryError:
        _say({"error": {"code": JobError.code, "message": _NO_MEMORY.format(order.memory_bytes / 2**20)}})
    finally:
        db.close()
    sys.stdout.flush()
    os._exit(0)  # not through the thread that waits on standard input


_NO_MEMORY = (
    "The machine has too little memory to build this index, though it is within {:,.0f} MiB "
    "(REVLN_INDEX_MEMORY_BYTES). Ask for type ivfpq, or lower the limit so that auto does."
)

if __name__ == "__main__":
    main()
