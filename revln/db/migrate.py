"""Bring a database to the newest schema, and tell whether it has it."""

from __future__ import annotations

from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from revln.db.engine import Database
from revln.errors import StartupError, Unavailable
from revln.settings import Settings

__all__ = ["alembic_config", "require_tables", "upgrade"]


def alembic_config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    # Alembic reads the option through configparser, to which a % in a password is the start of a reference.
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def upgrade(settings: Settings) -> None:
    """Run every migration that has not run yet; nothing to do is fine."""
    if not settings.database_url.get_secret_value():
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    command.upgrade(alembic_config(settings.resolved_database_url), "head")


def require_tables(settings: Settings) -> None:
    """Raise StartupError if the database lacks tables of this version; one that is away may have them."""
    database = Database(settings.resolved_database_url)
    try:
        with database.read() as connection:
            has = MigrationContext.configure(connection).get_current_revision()
    except Unavailable:
        return
    finally:
        database.close()
    scripts = ScriptDirectory.from_config(alembic_config(settings.resolved_database_url))
    older = [revision.revision for revision in scripts.walk_revisions()][1:]
    if has is None or has in older:  # one that we do not know is a newer version's: it may be about to replace us
        what = "no tables of revln" if has is None else f"the tables of an older version of revln ({has})"
        raise StartupError(f"The database has {what}. Run `revln db upgrade` first.")
