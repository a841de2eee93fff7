"""Bring a database to the newest schema."""

from __future__ import annotations

from importlib.resources import files

from alembic import command
from alembic.config import Config

from revln.settings import Settings

__all__ = ["alembic_config", "upgrade"]


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
