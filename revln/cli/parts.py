"""The parts of a large deployment, one command each: API, worker, Flower, database.

`api` and `worker` are named by strings and imported when they run: revln itself imports neither.
"""

from __future__ import annotations

import gc
import importlib
import os
import resource
import socket
from typing import Any

import click

from revln.exposure import require_api_key, require_flower_login
from revln.models.memory import give_back_large_blocks
from revln.private import keep_private
from revln.settings import Settings
from revln.telemetry import configure_logging

__all__ = ["api", "db", "flower", "worker", "worker_trouble"]

# A long-poll or SSE stream may last a minute; clients reconnect, so a restart of the API need not wait for them.
API_GRACE_S = 5
FILES_BESIDE = 256  # open files of the API that are no client's connection: databases, Redis, blobs


@click.command()
@click.option("--host", help="Address to listen on.  [REVLN_API_HOST]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on.  [REVLN_API_PORT]")
def api(host: str | None, port: int | None) -> None:
    """Run the HTTP API.

    Off loopback it demands an API key: set REVLN_API_KEY. `revln db upgrade` comes first.

    \b
    Example:
      REVLN_DATABASE_URL=postgresql+psycopg://… REVLN_REDIS_URL=redis://… revln api --host 0.0.0.0
    """
    settings = Settings.from_env(api_host=host, api_port=port)
    require_api_key(settings)
    keep_private(settings.data_dir)
    # The application is built by its factory, which reads the environment: hand it what the flags have changed.
    os.environ.update(settings.to_env())
    import uvicorn

    from revln.db.migrate import require_tables

    require_tables(settings)
    configure_logging(settings)
    give_back_large_blocks()
    _allow_open_files(2 * settings.max_connections + FILES_BESIDE)
    for module in ("api.app", "api.server"):
        importlib.import_module(module)
    # What is loaded now stays; a collection that looks it through each time made the parsing of large bodies, for which
    # everybody waits, four times as long.
    gc.freeze()
    uvicorn.run(
        "api.app:create_app",
        factory=True,
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,
        log_level=settings.log_level,
        access_log=settings.log_level == "debug",
        timeout_graceful_shutdown=API_GRACE_S,
        server_header=False,
        # Whose X-Forwarded-For is believed: nobody's but theirs, so that nobody else chooses what the audit log says.
        proxy_headers=bool(settings.trusted_proxy_list),
        forwarded_allow_ips=settings.trusted_proxy_list,
        http="api.server:GuardedHttp",
        limit_concurrency=settings.max_connections,
        ws="none",  # nothing here speaks it
    )


def _allow_open_files(count: int) -> None:
    """As many as the system lets us: 1,024 is common, which fewer clients would use up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@click.command()
@click.option("--queues", help="Comma-separated queues to serve, as in 'search.*,embed.bulk'.  [REVLN_QUEUES]")
@click.option("--concurrency", type=click.IntRange(1, 256), help="Chunks run at once.  [REVLN_CONCURRENCY]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where models run.  [REVLN_DEVICE]")
@click.option("--check", is_flag=True, help="Run nothing: tell by the exit status whether this host's worker lives.")
def worker(queues: str | None, concurrency: int | None, device: str | None, check: bool) -> int:
    """Run one worker: the process that holds the models.

    Start as many as there are machines or GPUs; each serves all queues unless told otherwise.

    \b
    Examples:
      revln worker                                   everything, on a GPU if there is one
      revln worker --queues 'search.*' --device cpu  searches only
    """
    settings = Settings.from_env(queues=queues, concurrency=concurrency, device=device)
    if check:
        return _check_worker(settings)
    keep_private(settings.data_dir)
    os.environ.update(settings.to_env())
    code: int = importlib.import_module("worker.main").run(settings)
    return code


@click.command()
@click.option("--host", help="Address to listen on.  [REVLN_FLOWER_HOST]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on.  [REVLN_FLOWER_PORT]")
def flower(host: str | None, port: int | None) -> int:
    """Run Flower, the view of the queues and workers.

    It shows and changes nothing. Off loopback it demands a password: set REVLN_FLOWER_BASIC_AUTH to user:password.
    """
    settings = Settings.from_env(flower_host=host, flower_port=port)
    require_flower_login(settings)
    keep_private(settings.data_dir)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    from revln.cli.flower import run_flower

    return run_flower(settings)


@click.group()
def db() -> None:
    """Look after the database."""


@db.command()
def upgrade() -> None:
    """Bring the database to the newest schema. Nothing to do is fine; run it before API and workers start."""
    settings = Settings.from_env()
    keep_private(settings.data_dir)
    from revln.db import migrate

    migrate.upgrade(settings)


def worker_trouble(settings: Settings, pid: int) -> str:
    """What is wrong with one worker of this host, as the database says. Raises Unavailable."""
    return next((row["trouble"] for row in _workers_here(settings) if row["pid"] == pid), "")


def _check_worker(settings: Settings) -> int:
    """For a container's health check: this host's workers beat and hear their own messages."""
    rows = [row for row in _workers_here(settings) if _lives(row["pid"])]
    for row in rows:
        click.echo(f"{row['id']}: {row['trouble'] or 'well'}", err=bool(row["trouble"]))
    if not rows:
        click.echo(f"no worker of {socket.gethostname()} has been heard of lately", err=True)
    return 1 if not rows or any(row["trouble"] for row in rows) else 0


def _workers_here(settings: Settings) -> list[dict[str, Any]]:
    from revln.db.engine import Database
    from revln.db.workers import workers_of

    database = Database(settings.resolved_database_url)
    try:
        with database.read() as connection:
            return workers_of(connection, socket.gethostname())
    finally:
        database.close()


def _lives(pid: int) -> bool:
    """What has no process any more is not in trouble: its row is swept in a while."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
