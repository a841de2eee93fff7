"""Writers that race: what is found is what a dictionary holds. (Builders that die: experiment 13.)"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from revln.blobs import BlobStore
from revln.db.collections.collections import list_items
from revln.db.collections.log import read_log
from revln.db.engine import Database
from revln.db.jobs.results import vectors_from_bytes
from tests.chaos.nursery import nursery
from tests.collections import Contents, clustered, make_collection, read, recall
from worker.index.cache import IndexCache

DIM = 16


def test_processes_that_change_one_collection_at_once_leave_what_a_dictionary_holds(
    db: Database, database_url: str, tmp_path: Path
) -> None:
    c = make_collection(db, DIM)
    files = [tmp_path / f"journal-{seed}" for seed in (1, 2, 3)]
    with nursery(database_url, tmp_path / "blobs") as run:
        assert run(*(f"write {seed} 60 {file}" for seed, file in enumerate(files, start=1))) == [0, 0, 0]
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
