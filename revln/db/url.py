"""REVLN_DATABASE_URL as SQLAlchemy reads it, or why it cannot be."""

from __future__ import annotations

from psycopg import ProgrammingError
from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from revln.errors import SettingsError

__all__ = ["parse_database_url"]

_FORMS = "It reads postgresql+psycopg://USER:PASSWORD@HOST/NAME or sqlite:////PATH"
_DRIVERS = {"sqlite": "sqlite", "sqlite+pysqlite": "sqlite", "postgres": "postgresql+psycopg",
            "postgresql": "postgresql+psycopg", "postgresql+psycopg": "postgresql+psycopg"}  # fmt: skip


def parse_database_url(url: str) -> URL:
    """Raise SettingsError for what is no URL of a database that revln runs on. The message never holds the URL."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise SettingsError(
            f"REVLN_DATABASE_URL cannot be read. {_FORMS}; special characters of a password in percent-encoding "
            "(@ is %40, / is %2F)."
        ) from None
    if parsed.drivername not in _DRIVERS:
        raise SettingsError(
            f"REVLN_DATABASE_URL names {parsed.drivername!r}; revln runs on sqlite and postgresql. {_FORMS}."
        )
    parsed = parsed.set(drivername=_DRIVERS[parsed.drivername])
    if parsed.drivername == "sqlite":
        _check_sqlite(parsed)
    else:
        _check_postgresql(parsed)
    return parsed


def _check_sqlite(url: URL) -> None:
    if url.host or not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise SettingsError(
            "REVLN_DATABASE_URL must name SQLite's file, which all processes share: sqlite:////PATH (four slashes), or "
            "nothing for one in the data folder."
        )


def _check_postgresql(url: URL) -> None:
    try:
        make_conninfo(
            **{name: value if isinstance(value, str) else ",".join(value) for name, value in url.query.items()}
        )
    except ProgrammingError as err:
        raise SettingsError(f"REVLN_DATABASE_URL: {str(err).strip().splitlines()[0]}.") from None
