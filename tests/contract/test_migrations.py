"""The migrations make the very tables that the code speaks of."""

from __future__ import annotations

from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from revln.db.engine import Database
from revln.db.migrate import alembic_config, upgrade
from revln.db.tables import metadata
from revln.settings import Settings


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
