"""Alembic's entry: connects with revln's own engine, so that SQLite's pragmas hold here too."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from revln.db.engine import Database
from revln.db.tables import metadata

_LOCK = 7_265_766_612  # any constant that is ours: two migrators at once wait for each other on PostgreSQL


def run() -> None:
    url = context.config.get_main_option("sqlalchemy.url")
    assert url is not None
    database = Database(url)
    try:
        with database.write() as connection:
            if not database.is_sqlite:
                connection.execute(text("SET LOCAL lock_timeout = 0"))  # the other one may take its time
                connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            context.configure(
                connection=connection,
                target_metadata=metadata,
                compare_type=True,
                render_as_batch=database.is_sqlite,
            )
            with context.begin_transaction():
                context.run_migrations()
    finally:
        database.close()


run()
