"""The migrations make the very tables that the code speaks of."""

from __future__ import annotations

from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from revln.access import OWNER
from revln.db.collections.collections import delete_collection
from revln.db.engine import Database
from revln.db.migrate import alembic_config, upgrade
from revln.db.tables import metadata
from revln.settings import Settings
from tests.collections import clustered, make_collection, read, write


def _differences(db: Database) -> list[Any]:
    with db.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))


def test_the_migrated_schema_equals_the_tables(db: Database) -> None:
    assert _differences(db) == []


def test_upgrading_twice_is_fine(database_url: str) -> None:
    upgrade(Settings(database_url=database_url))


def test_downgrading_leaves_nothing_behind(database_url: str, db: Database) -> None:
    command.downgrade(alembic_config(database_url), "base")
    with db.read() as connection:
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
    upgrade(Settings(database_url=database_url))
    assert _differences(db) == []


def test_a_collection_that_is_being_removed_goes_with_its_log_on_the_way_back(database_url: str, db: Database) -> None:
    kept, gone = make_collection(db, 4, "kept"), make_collection(db, 4, "gone")
    for collection in (kept, gone):
        write(db, collection, {"a": clustered(1, 4, 0)[0]})
    delete_collection(db, OWNER, "gone")
    command.downgrade(alembic_config(database_url), "0012")
    with db.write() as connection:
        for table in ("vectors", "items"):
            assert set(connection.scalars(text(f"SELECT collection_id FROM {table}"))) == {kept.id}
    upgrade(Settings(database_url=database_url))
    assert _differences(db) == []
    write(db, kept, {"b": clustered(1, 4, 1)[0]})
    assert read(db, "kept").count == 2


def test_what_was_there_before_tenants_is_the_default_ones(database_url: str, db: Database) -> None:
    command.downgrade(alembic_config(database_url), "0004")
    job = {"id": "j", "kind": "embed", "status": "queued", "priority": "normal", "input": "{}", "metadata": "{}"}
    rows = {
        "jobs": {**job, "created_at": 1.0, "retention_s": 1.0, "idempotency_key": "k"},
        "collections": {"id": "c", "name": "photos", "model": "m", "model_fingerprint": "f", "dim": 4,
                        "metadata": "{}", "created_at": 1.0, "updated_at": 1.0},
    }  # fmt: skip
    with db.write() as connection:
        for table, row in rows.items():
            columns = ", ".join(row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({values})"), row)
    upgrade(Settings(database_url=database_url))
    with db.read() as connection:
        for table in rows:
            assert connection.scalars(text(f"SELECT tenant FROM {table}")).all() == ["default"]
