"""Snapshots from end to end within one process: built from the log, written, loaded, replaced, damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from revln.access import OWNER
from revln.blobs import BlobStore
from revln.db.collections.collections import Collection, delete_collection
from revln.db.collections.snapshots import Snapshot, begin_build, publish, roll_back
from revln.db.engine import Database
from revln.db.retention import purge_collections
from revln.errors import JobError, NotFound, Unavailable
from revln.index.base import IndexType
from revln.index.collection import CollectionIndex
from tests.collections import (
    Contents,
    build,
    clustered,
    make_collection,
    nobody,
    order_of,
    read,
    recall,
    search,
    write,
)
from tests.stack import wait_until
from worker.index.build_process import PREFIX, build_snapshot
from worker.index.cache import IndexCache
from worker.index.collect import collect_files
from worker.index.load import load_newest

DIM, ROWS, K = 16, 2_700, 10
TYPES = ["flat", "hnsw", "ivf", "ivfpq"]


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path / "blobs"))


@pytest.fixture
def contents() -> Contents:
    return {f"i{n}": row for n, row in enumerate(clustered(ROWS, DIM, 1))}


@pytest.fixture
def filled(db: Database, contents: Contents) -> Collection:
    c = make_collection(db, DIM)
    write(db, c, dict(contents))
    return c


def item_ids(db: Database, collection: Collection, index: CollectionIndex, query: np.ndarray, k: int) -> list[str]:
    return [item_id for item_id, _ in search(db, collection, index, query, k)]


def file_of(blobs: BlobStore, snapshot: Snapshot) -> Path:
    sha = snapshot.sha256
    return Path(blobs.url) / PREFIX / sha[:2] / sha[2:4] / sha


@pytest.mark.parametrize("kind", TYPES)
def test_an_index_that_was_built_written_and_loaded_finds_what_brute_force_does(
    db: Database, blobs: BlobStore, filled: Collection, contents: Contents, kind: str
) -> None:
    snapshot = build(db, blobs, filled, kind, recall=0.95)
    assert snapshot.recall >= 0.95
    assert (snapshot.count, snapshot.up_to_seq, snapshot.type) == (ROWS, ROWS, kind)
    # Changes behind the snapshot: a replaced item, a deleted one, a new one.
    changes = {"i3": clustered(1, DIM, 77)[0], "i4": None, "new": clustered(1, DIM, 78)[0]}
    write(db, filled, changes)
    contents.update({name: row for name, row in changes.items() if row is not None})
    del contents["i4"]
    index = IndexCache(db, blobs).caught_up(read(db))
    assert len(index) == ROWS
    assert recall(db, filled, index, contents) >= 0.93
    assert item_ids(db, filled, index, contents["new"], 1) == ["new"]
    assert item_ids(db, filled, index, contents["i3"], 1) == ["i3"]
    assert "i4" not in item_ids(db, filled, index, clustered(ROWS, DIM, 1)[4], K)
    assert len(index.search(contents["i1"][None], ROWS + 50)[0]) == ROWS  # k above the count


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "empty"])
def test_a_damaged_file_is_noticed_the_older_snapshot_serves_and_a_new_build_is_asked_for(
    db: Database, blobs: BlobStore, filled: Collection, contents: Contents, harm: str
) -> None:
    older = build(db, blobs, filled, "flat")
    write(db, filled, {"i0": None})
    del contents["i0"]
    newer = build(db, blobs, filled, "hnsw")
    file = file_of(blobs, newer)
    whole = file.read_bytes()
    match harm:
        case "truncate":
            os.truncate(file, len(whole) // 2)
        case "flip":
            file.write_bytes(
                whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]
            )
        case "remove":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
    asked: list[tuple[str, str]] = []
    cache = IndexCache(db, blobs, lambda collection, damaged: asked.append((collection.name, damaged.id)))
    index = cache.caught_up(read(db))
    assert recall(db, filled, index, contents) == 1.0
    assert asked == [("c", newer.id)]
    assert read(db).snapshot_id == older.id
    file_of(blobs, older).unlink()
    fresh = IndexCache(db, blobs, lambda collection, damaged: asked.append((collection.name, damaged.id)))
    assert recall(db, filled, fresh.caught_up(read(db)), contents) == 1.0  # from the log alone
    assert asked == [("c", newer.id), ("c", older.id)]
    assert read(db).snapshot_id is None


def test_any_flipped_byte_or_cut_is_detected(db: Database, blobs: BlobStore) -> None:
    c = make_collection(db, 4)
    write(db, c, {f"i{n}": row for n, row in enumerate(clustered(300, 4, 1))})
    snapshot = build(db, blobs, c, "hnsw")
    file = file_of(blobs, snapshot)
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    for trial in range(60):
        bad = bytearray(whole)
        if trial % 3:
            bad[random.integers(len(whole))] ^= 1 << random.integers(8)
        else:
            del bad[random.integers(len(whole)) :]
        file.write_bytes(bad)
        with pytest.raises(Exception, match="damaged"):
            blobs.open_checked(snapshot.sha256, PREFIX)
        file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(whole)
    index, snapshot_id = load_newest(db, blobs, c, lambda *_: None)
    assert (len(index), snapshot_id) == (300, snapshot.id)


def test_searches_go_on_while_a_new_snapshot_takes_the_place_of_the_old_one_and_back(
    db: Database, blobs: BlobStore, filled: Collection, contents: Contents
) -> None:
    cache = IndexCache(db, blobs)
    flat = cache.caught_up(read(db))
    one = build(db, blobs, filled, "hnsw")
    assert cache.caught_up(read(db)) is flat  # loaded beside it
    hnsw = wait_until(lambda: (found := cache.caught_up(read(db))) is not flat and found, what="the new snapshot")
    assert recall(db, filled, hnsw, contents) >= 0.9
    two = build(db, blobs, filled, "ivf")
    wait_until(lambda: cache.caught_up(read(db)) is not hnsw, what="the newer snapshot")
    assert roll_back(db, filled.id, None, OWNER).id == one.id != two.id
    ivf = cache.caught_up(read(db))
    back = wait_until(lambda: (found := cache.caught_up(read(db))) is not ivf and found, what="the older snapshot")
    assert back.tail_rows == 0
    write(db, filled, {"late": contents["i7"]})
    assert set(item_ids(db, filled, cache.caught_up(read(db)), contents["i7"], 2)) == {"i7", "late"}
    cache.close()


def test_a_blob_store_that_does_not_answer_leaves_the_log(
    db: Database, filled: Collection, blobs: BlobStore, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = build(db, blobs, filled, "flat")

    def away(*_: object) -> None:
        raise Unavailable("away")

    monkeypatch.setattr(blobs, "open_checked", away)
    index = IndexCache(db, blobs).caught_up(read(db))
    assert recall(db, filled, index, contents) == 1.0
    assert read(db).snapshot_id == snapshot.id  # it is not to blame


def test_a_full_disk_ends_the_build_and_changes_nothing(
    db: Database, filled: Collection, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = build(db, blobs, filled, "flat")
    begin = blobs._files.begin

    def small_disk() -> object:
        draft = begin()
        left, write_piece = 50_000, draft.file.write

        class Full:
            def __getattr__(self, name: str) -> object:
                return getattr(file, name)

            def write(self, piece: bytes) -> int:
                nonlocal left
                left -= len(piece)
                if left < 0:
                    raise OSError(28, "No space left on device")
                return write_piece(piece)

        file = draft.file
        draft.file = Full()  # type: ignore[assignment]
        return draft

    monkeypatch.setattr(blobs._files, "begin", small_disk)
    with pytest.raises(Unavailable, match="No space left"):
        build_snapshot(db, blobs, order_of(filled, "hnsw"), nobody)
    assert read(db).snapshot_id == snapshot.id
    assert list((Path(blobs.url) / "_unfinished").iterdir()) == []


def test_what_cannot_be_built_says_why(
    db: Database, blobs: BlobStore, filled: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JobError, match="REVLN_INDEX_MEMORY_BYTES"):
        build_snapshot(db, blobs, order_of(filled, "hnsw", memory_bytes=2**18), nobody)
    monkeypatch.setattr("revln.index.build._WIDTHS", {IndexType.HNSW: (1,)})
    with pytest.raises(JobError, match="REVLN_INDEX_RECALL"):
        build_snapshot(db, blobs, order_of(filled, "hnsw", recall=1.0, links=4), nobody)
    empty = make_collection(db, DIM, "empty")
    with pytest.raises(JobError, match="empty"):
        build_snapshot(db, blobs, order_of(empty), nobody)
    assert IndexCache(db, blobs).caught_up(empty).search(clustered(1, DIM, 1), 5) == [[]]


@pytest.mark.parametrize("step", ["read", "train", "add", "measure", "write", "publish"])
def test_a_collection_deleted_at_any_step_ends_its_build(
    db: Database, blobs: BlobStore, filled: Collection, step: str
) -> None:
    def delete_at(name: str) -> None:
        with suppress(NotFound):  # a step may come many times
            if name == step:
                delete_collection(db, OWNER, "c")

    begun = begin_build(db, filled.id, "test", 30)
    assert begun is not None
    with pytest.raises((NotFound, JobError), match="deleted"):
        _build_and_publish(db, blobs, filled, begun, delete_at)


def _build_and_publish(
    db: Database, blobs: BlobStore, collection: Collection, begun: str, step: Callable[[str], None]
) -> None:
    made = build_snapshot(db, blobs, order_of(collection, "ivf"), step)
    with db.write() as connection:
        publish(connection, collection.id, begun, made, 3)


def test_a_collection_deleted_under_search_answers_with_nothing(
    db: Database, blobs: BlobStore, filled: Collection
) -> None:
    build(db, blobs, filled, "ivfpq")
    cache, collection = IndexCache(db, blobs), read(db)
    index = cache.caught_up(collection)
    delete_collection(db, OWNER, "c")
    assert cache.caught_up(collection) is index
    while purge_collections(db, 5_000):
        pass
    assert IndexCache(db, blobs).caught_up(collection).search(clustered(1, DIM, 1), 5) == [[]]
    assert index.search(clustered(2, DIM, 1), 5) == [[], []]  # its vectors went after it


def test_files_that_no_snapshot_names_are_collected_and_no_others(
    db: Database, blobs: BlobStore, filled: Collection
) -> None:
    one = build(db, blobs, filled, "flat", keep=1)
    build_snapshot(db, blobs, order_of(filled, "ivf"), nobody)  # its builder died before it published
    assert collect_files(db, blobs) == 0  # it may be about to
    two = build(db, blobs, filled, "hnsw", keep=1)
    assert collect_files(db, blobs, timedelta(0)) == 2
    assert [found.sha256 for found in blobs.list(PREFIX)] == [two.sha256]
    assert one.sha256 != two.sha256
