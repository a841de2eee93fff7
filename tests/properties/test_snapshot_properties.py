"""Any order of upserts, deletes, builds, damage, rollbacks, restarts and blanking leaves what a dictionary holds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from revln.access import OWNER
from revln.blobs import BlobStore
from revln.db.collections.blanking import blank_replaced
from revln.db.collections.snapshots import current_snapshot, roll_back
from revln.db.engine import Database
from revln.db.migrate import upgrade
from revln.errors import Conflict
from revln.settings import Settings
from tests.collections import Contents, assert_nearest, build, clustered, make_collection, read, search, write
from worker.index.build_process import PREFIX
from worker.index.cache import IndexCache

DIM, K = 8, 5
_names = count()

operations = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9_999)), max_size=12)),
        st.tuples(st.just("delete"), st.lists(st.integers(0, 30), max_size=8, unique=True)),
        st.tuples(st.just("build"), st.sampled_from(["flat", "hnsw", "ivf"])),
        st.tuples(st.sampled_from(["restart", "damage", "rollback", "blank"]), st.none()),
    ),
    max_size=14,
)


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'revln.db'}"
        upgrade(Settings(database_url=url))
        db = Database(url)
        yield db
        db.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=operations)
def test_any_interleaving_equals_brute_force(
    database: Database, tmp_path: Path, operations: list[tuple[str, object]]
) -> None:
    db, name = database, f"c{next(_names)}"
    blobs = BlobStore(str(tmp_path / name))
    c = make_collection(db, DIM, name)
    contents: Contents = {}
    cache = IndexCache(db, blobs)
    queries = clustered(3, DIM, 4_242)
    for operation, given_value in operations:
        match operation, given_value:
            case "upsert", list(pairs):
                changes = {f"i{item}": clustered(1, DIM, seed)[0] for item, seed in pairs}
                write(db, c, dict(changes))
                contents.update(changes)
            case "delete", list(items):
                write(db, c, {f"i{item}": None for item in items})
                for item in items:
                    contents.pop(f"i{item}", None)
            case "build", str(kind):
                if contents:
                    build(db, blobs, c, kind, recall=0.5)
            case "restart", _:
                cache.close()
                cache = IndexCache(db, blobs)
            case "damage", _:
                _damage(db, blobs, c.id)
            case "blank", _:
                blank_replaced(db, 10, settled_s=-1)
            case "rollback", _:
                with suppress(Conflict):  # there is none before
                    roll_back(db, c.id, None, OWNER)
        index = cache.caught_up(read(db, name))
        assert len(index) == len(contents)
        for query in queries:
            assert_nearest(search(db, c, index, query, K, exact=True), contents, query, K)
            quick = [item_id for item_id, _ in search(db, c, index, query, K)]
            assert set(quick) <= set(contents)
            assert len(quick) == min(K, len(contents))
    cache.close()


def _damage(db: Database, blobs: BlobStore, collection_id: str) -> None:
    """Cut the current snapshot's file in half."""
    with db.read() as connection:
        current = current_snapshot(connection, collection_id)
    if current is None:
        return
    file = Path(blobs.url) / PREFIX / current.sha256[:2] / current.sha256[2:4] / current.sha256
    if file.exists():
        file.write_bytes(file.read_bytes()[: current.size_bytes // 2])
