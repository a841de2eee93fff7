"""The database as the rest of revln sees it: ``read()`` and ``write()`` transactions on SQLite or PostgreSQL.

SQLite runs in WAL mode. A write transaction begins with BEGIN IMMEDIATE: one that began as a reader and then wrote
would fail with "database is locked" at once, whatever the busy timeout is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from sqlalchemy import Connection, Double, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from revln.db.url import parse_database_url
from revln.db.write_turns import WriteTurns
from revln.errors import Unavailable

__all__ = ["Database", "db_now"]

BUSY_TIMEOUT_S = 30.0
# PostgreSQL ends a transaction that sits idle: a worker frozen in the middle of one would keep its row locks for ever.
IDLE_TRANSACTION_S = 15.0
POOL_SIZE = 10
POOL_OVERFLOW = 40  # the API's threads and a worker's chunks may all want one at once
# Of libpq, unless the URL says otherwise. A server that is gone without a word (its machine, or the network between) is
# noticed after half a minute; by Linux's own settings after two hours.
_POSTGRESQL = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
# A pooler that gives each transaction another session (PgBouncer's transaction mode) has no place for what a session
# keeps: no prepared statements, and our timeouts are set with each BEGIN, in the same message. `autocommit` is the
# driver's word for "send no BEGIN of your own".
_SESSIONLESS = {"prepare_threshold": None, "autocommit": True}
_OTHER_TABLES = ("42P01", "42703")  # no such table, no such column
_WRITE = "revln_write"


class db_now(FunctionElement[float]):
    """Now by the database's clock, in seconds since 1970. Workers' clocks differ; leases are judged by this one."""

    type = Double()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite_now(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgresql_now(*_: Any, **__: Any) -> str:
    # Not now(): that is the transaction's start, and a transaction may have waited for a lock.
    return "(extract(epoch from clock_timestamp())::double precision)"


class Database:
    """One engine for a process. Make it after any fork."""

    def __init__(self, url: str) -> None:
        parsed = parse_database_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self._writing = Lock()
        options: dict[str, Any] = {
            "pool_size": POOL_SIZE,
            "max_overflow": POOL_OVERFLOW,
            "pool_timeout": BUSY_TIMEOUT_S,
            "hide_parameters": True,  # an error's message goes into the log; what users sent does not
        }
        if self.is_sqlite:
            options["connect_args"] = {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
        else:
            options["pool_pre_ping"] = True
            options["connect_args"] = _SESSIONLESS | {
                name: value for name, value in _POSTGRESQL.items() if name not in parsed.query
            }
        self.engine: Engine = create_engine(parsed, **options)
        if self.is_sqlite:
            self._turns = WriteTurns(parsed.database or "")
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        else:
            event.listen(self.engine, "begin", _begin_postgresql)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads.

        Raises:
            Unavailable: the database does not answer.
        """
        with self._transaction({}) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that may write; commits at the end of the block, rolls back on any exception.

        Raises:
            Unavailable: the database does not answer, or SQLite's write lock is not to be had for 30 s.
        """
        with self._turn(), self._transaction({_WRITE: True}) as connection:
            yield connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Threads of one process take turns at SQLite's only write lock, and so do processes (`WriteTurns`).

        SQLite itself waits by sleeping up to 100 ms and looking again: with eight clients the 99th percentile of a
        submission was 848 ms. A thread that waits for a lock is woken when it is free.
        """
        if not self.is_sqlite:
            yield
            return
        if not self._writing.acquire(timeout=BUSY_TIMEOUT_S):
            raise _busy()
        try:
            with self._turns.turn():
                yield
        finally:
            self._writing.release()

    @contextmanager
    def _transaction(self, options: dict[str, Any]) -> Iterator[Connection]:
        try:
            with self.engine.connect().execution_options(**options) as connection, connection.begin():
                yield connection
        except (OperationalError, InterfaceError, PoolTimeout) as err:
            raise _unavailable(err) from err
        except DBAPIError as err:
            if getattr(err.orig, "sqlstate", None) in _OTHER_TABLES:
                raise _other_tables(err) from err
            if not err.connection_invalidated:
                raise
            raise Unavailable("The database closed the connection. Try again.", database=True) from err

    def close(self) -> None:
        self.engine.dispose()


def _configure_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN is always deferred; ours is below
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # accepted means committed, and committed means on the disk
        "foreign_keys=ON",
        f"busy_timeout={int(BUSY_TIMEOUT_S * 1000)}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_postgresql(connection: Connection) -> None:
    connection.exec_driver_sql(
        f"BEGIN; SET LOCAL lock_timeout = {int(BUSY_TIMEOUT_S * 1000)}; "
        f"SET LOCAL idle_in_transaction_session_timeout = {int(IDLE_TRANSACTION_S * 1000)}"
    )


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get(_WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _busy() -> Unavailable:
    return Unavailable(f"The database was busy for {BUSY_TIMEOUT_S:g} s. Try again.", database=True)


def _unavailable(err: Exception) -> Unavailable:
    orig = getattr(err, "orig", None)
    sqlite = getattr(orig, "sqlite_errorcode", 0) & 0xFF  # the rest of it says more than we want to know
    if sqlite == sqlite3.SQLITE_BUSY:
        return _busy()
    if sqlite and _first_line(err).startswith(("no such table", "no such column")):
        return _other_tables(err)
    # Of an operational error these two say that the statement is to blame, which will be no better the next time.
    mistaken = sqlite == sqlite3.SQLITE_ERROR or str(getattr(orig, "sqlstate", None)).startswith("54")
    return Unavailable(f"The database does not answer: {_first_line(err)}. Try again.", database=not mistaken)


def _other_tables(err: Exception) -> Unavailable:
    return Unavailable(
        f"The database has not the tables of this version of revln ({_first_line(err)}). Run `revln db upgrade`."
    )


def _first_line(err: Exception) -> str:
    return str(getattr(err, "orig", None) or err).strip().splitlines()[0][:200]
