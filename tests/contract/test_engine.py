"""The database's URL, its connections, and whether it has our tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy.engine import make_url

from revln.db.engine import Database
from revln.db.migrate import alembic_config, require_tables, upgrade
from revln.db.workers import list_workers
from revln.errors import SettingsError, StartupError, Unavailable
from revln.settings import Settings
from tests.conftest import fresh_database
from tests.databases import DATABASES


def test_a_silent_server_is_noticed_and_the_url_may_say_how_soon(request: pytest.FixtureRequest) -> None:
    with fresh_database("postgresql", Path(), request) as url:
        assert parameters(url) >= {"keepalives_idle": "10", "tcp_user_timeout": "30000"}.items()
        other = make_url(url).update_query_dict({"keepalives_idle": "60"}).render_as_string(False)
        assert parameters(other) >= {"keepalives_idle": "60", "tcp_user_timeout": "30000"}.items()


def parameters(url: str) -> Any:
    db = Database(url)
    try:
        with db.read() as connection:
            return connection.connection.driver_connection.info.get_parameters().items()  # type: ignore[union-attr]
    finally:
        db.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "cannot be read"),
        ("nonsense", "cannot be read"),
        ("postgresql+psycopg://u:s3cret@h:abc/d", "cannot be read"),
        ("mysql://u:s3cret@h/d", "revln runs on sqlite and postgresql"),
        ("postgresql+asyncpg://u:s3cret@h/d", "postgresql+asyncpg"),
        ("postgresql+psycopg2://u:s3cret@h/d", "postgresql+psycopg2"),
        ("postgresql://u:s3cret@h/d?sslmod=require", "sslmod"),
        ("sqlite+aiosqlite:////tmp/x.db", "sqlite+aiosqlite"),
        ("sqlite://", "must name SQLite's file"),
        ("sqlite:///:memory:", "must name SQLite's file"),
        ("sqlite:///file:x?mode=memory&uri=true", "must name SQLite's file"),
        ("sqlite://tmp/x.db", "must name SQLite's file"),
    ],
)
def test_a_url_that_names_no_database_of_ours_is_one_sentence_without_it(url: str, says: str) -> None:
    with pytest.raises(SettingsError, match="REVLN_DATABASE_URL") as caught:
        Database(url)
    assert says in caught.value.message
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    "url", ["postgres://u@h/d", "postgresql://u@h/d", "postgresql+psycopg://u@h/d?sslmode=require"]
)
def test_postgresql_is_spoken_to_by_psycopg_however_it_is_called(url: str) -> None:
    db = Database(url)
    assert db.engine.dialect.driver == "psycopg"
    db.close()


@pytest.mark.parametrize("kind", DATABASES)
def test_a_database_without_our_tables_says_what_to_run(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with fresh_database(kind, tmp_path, request) as url:
        settings = Settings(database_url=url, data_dir=tmp_path)
        with pytest.raises(StartupError, match=r"no tables of revln.*revln db upgrade"):
            require_tables(settings)
        db = Database(url)
        with pytest.raises(Unavailable, match=r"Run `revln db upgrade`"), db.read() as connection:
            list_workers(connection)
        db.close()
        command.upgrade(alembic_config(url), "0012")
        with pytest.raises(StartupError, match=r"older version of revln \(0012\)"):
            require_tables(settings)
        upgrade(settings)
        require_tables(settings)


def test_a_database_that_is_away_may_have_its_tables() -> None:
    require_tables(Settings(database_url="postgresql+psycopg://u@127.0.0.1:1/d"))
