"""Through a real PgBouncer in transaction mode, where each transaction may get another session."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from revln.access import OWNER
from revln.db.collections.collections import create_collection, get_collection
from revln.db.engine import BUSY_TIMEOUT_S, Database
from revln.db.migrate import upgrade
from revln.embedded_redis import free_port
from revln.settings import Settings
from tests.conftest import fresh_database
from tests.stack import wait_until

CLIENTS, TIMES = 8, 25  # each statement more often than the five times after which psycopg would prepare it
CONFIG = """\
[databases]
* = host={host} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
"""


@pytest.fixture
def pooled_url(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("NOT TESTED: no pgbouncer on this machine (apt install pgbouncer)")
    with fresh_database("postgresql", tmp_path, request) as url:
        direct, port = make_url(url), free_port("127.0.0.1")
        config = tmp_path / "pgbouncer.ini"
        config.write_text(CONFIG.format(host=direct.query["host"], port=port))
        # It refuses to be root, as PostgreSQL does.
        as_user = ["--user", Path(direct.query["host"], ".s.PGSQL.5432").owner()] if os.geteuid() == 0 else []
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen([program, *as_user, str(config)], stdout=log, stderr=log)
        try:
            pooled = direct.set(host="127.0.0.1", port=port, username="postgres", query={})
            wait_until(lambda: process.poll() is not None or _answers(pooled.render_as_string(False)), 20, "PgBouncer")
            assert process.poll() is None, (tmp_path / "log").read_text()
            yield pooled.render_as_string(hide_password=False)
        finally:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with psycopg.connect(url.replace("+psycopg", ""), connect_timeout=2, prepare_threshold=None):
            return True
    except psycopg.OperationalError:
        return False


def _shown(db: Database, name: str) -> str:
    with db.write() as connection:
        return str(connection.execute(text(f"SHOW {name}")).scalar_one())


def test_transactions_of_many_clients_share_sessions_without_an_error(pooled_url: str) -> None:
    upgrade(Settings(database_url=pooled_url))
    db = Database(pooled_url)

    def work(number: int) -> set[str]:
        create_collection(db, OWNER, f"c{number}", "m", "f", 8, {})
        found = set()
        for _ in range(TIMES):
            with db.read() as connection:
                found.add(get_collection(connection, OWNER.tenant, f"c{number}").name)
            with db.write() as connection:
                connection.execute(text("UPDATE collections SET dim = dim WHERE name = :name"), {"name": f"c{number}"})
        return found

    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            assert list(pool.map(work, range(CLIENTS))) == [{f"c{number}"} for number in range(CLIENTS)]
    finally:
        db.close()


def test_our_timeouts_hold_in_our_transactions_and_are_left_to_nobody(pooled_url: str) -> None:
    db = Database(pooled_url)
    try:
        assert _shown(db, "lock_timeout") == f"{BUSY_TIMEOUT_S:g}s"
        assert _shown(db, "idle_in_transaction_session_timeout") == "15s"
    finally:
        db.close()
    with psycopg.connect(pooled_url.replace("+psycopg", ""), prepare_threshold=None) as stranger:
        row = stranger.execute("SHOW lock_timeout").fetchone()
        assert row == ("0",)
