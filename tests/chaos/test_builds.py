"""Builders that die at every step, and writers that race: what is found is what a dictionary holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from revln.blobs import BlobStore
from revln.db.collections import list_items
from revln.db.engine import Database
from revln.db.log import read_log
from revln.db.results import vectors_from_bytes
from tests.chaos.nursery import OWNER
from tests.collections import Contents, build, clustered, make_collection, read, recall, write
from worker.indexes import IndexCache

DIM = 16
STEPS = ["begun", "read", "train", "add", "measure", "write", "flush", "publish", "publishing", "published"]

Nursery = Callable[..., list[int]]


@pytest.fixture
def nursery(database_url: str, tmp_path: Path) -> Iterator[Nursery]:
    """Runs processes beside each other; their exit statuses."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.nursery", database_url, str(tmp_path / "blobs")],
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


def test_a_builder_killed_at_any_step_leaves_what_brute_force_finds(
    db: Database, tmp_path: Path, nursery: Nursery
) -> None:
    blobs = BlobStore(str(tmp_path / "blobs"))
    contents: Contents = {f"i{n}": row for n, row in enumerate(clustered(400, DIM, 1))}
    c = make_collection(db, DIM)
    write(db, c, dict(contents))
    first = build(db, blobs, c, "flat")
    for number, step in enumerate(STEPS):
        assert nursery(f"build {step}") == [-signal.SIGKILL], step
        changes = {f"i{number}": None, f"late-{number}": clustered(1, DIM, 100 + number)[0]}
        write(db, c, changes)
        del contents[f"i{number}"]
        contents[f"late-{number}"] = changes[f"late-{number}"]
        index = IndexCache(db, blobs).caught_up(read(db))
        published = step == "published"
        assert (read(db).snapshot_id == first.id) is not published, step
        assert len(index) == len(contents)
        assert recall(db, c, index, contents) >= (0.95 if published else 1.0), step
    second = build(db, blobs, c, "hnsw", owner=OWNER)  # whoever was killed is not in its way
    assert read(db).snapshot_id == second.id
    assert recall(db, c, IndexCache(db, blobs).caught_up(read(db)), contents) >= 0.95


def test_processes_that_change_one_collection_at_once_leave_what_a_dictionary_holds(
    db: Database, tmp_path: Path, nursery: Nursery
) -> None:
    c = make_collection(db, DIM)
    files = [tmp_path / f"journal-{seed}" for seed in (1, 2, 3)]
    assert nursery(*(f"write {seed} 60 {file}" for seed, file in enumerate(files, start=1))) == [0, 0, 0]
    journal = sorted(tuple(entry) for file in files for entry in json.loads(file.read_text()))
    assert [seq for seq, _, _ in journal] == list(range(1, len(journal) + 1))  # gapless, and each given once
    contents: Contents = {}
    for _, item, seed in journal:
        contents.pop(item, None)
        if seed is not None:
            contents[item] = clustered(1, DIM, seed)[0]
    with db.read() as connection:
        found = {row["item_id"]: row["vector"] for row in list_items(connection, c.id, 1_000, with_vectors=True)}
        page = read_log(connection, c.id, 0, DIM)
    assert page.head_seq == read(db).head_seq == len(journal)
    assert read(db).count == len(contents)
    assert found.keys() == contents.keys()
    assert all(np.array_equal(vectors_from_bytes(found[item], 1)[0], row) for item, row in contents.items())
    index = IndexCache(db, BlobStore(str(tmp_path / "blobs"))).caught_up(read(db))
    assert recall(db, c, index, contents) == 1.0
