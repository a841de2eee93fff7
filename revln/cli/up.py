"""`revln up`: everything on one machine, no service installed, one folder of data."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

from revln import embedded_redis
from revln.cli.machine import check_exposure, claim_port, sole_user
from revln.cli.parts import worker_trouble
from revln.client import RevlnClient
from revln.db.access.keys import keys_exist
from revln.db.engine import Database
from revln.errors import JobError, RevlnError, StartupError, UsersError
from revln.private import keep_private
from revln.settings import ENV_PREFIX, Settings
from revln.supervisor import LogStream, Part, Supervisor

__all__ = ["up"]

REDIS_START_S = 30.0  # loading a large append-only file
MIGRATE_S = 300.0
START_S = 300.0  # importing torch and loading a model on a slow or busy machine
FIRST_JOB = {"items": [{"text": "a small dog"}]}
FIRST_JOB_WAIT_S = 30.0
PROBE_TIMEOUT_S = 5.0
STOP_MARGIN_S = 10.0  # over a part's own grace: SIGKILL is for what hangs
REDIS_GRACE_S = 15.0

ROOT = Path(__file__).parents[2]


@click.command()
@click.option(
    "--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Folder for all data.  [./revln-data]"
)
@click.option("--host", help="Address of the API. Off loopback REVLN_API_KEY must be set.  [127.0.0.1]")
@click.option("--api-port", type=click.IntRange(0, 65535), help="Port of the API; 0 takes a free one.  [8000]")
@click.option("--flower-port", type=click.IntRange(0, 65535), help="Port of Flower; 0 takes a free one.  [5555]")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
def up(data_dir: Path | None, host: str | None, api_port: int | None, flower_port: int | None, workers: int) -> None:
    """Run everything on this machine, with no service to install.

    Starts a Redis-protocol server, the database (SQLite), the API, workers and Flower, and prints `ready:` once a
    worker has really run a job. Ctrl-C stops all of it in order; a second one at once. Data, queued jobs included,
    stay in the data folder. With REVLN_REDIS_URL or REVLN_DATABASE_URL set, those are used instead.

    \b
    Examples:
      revln up
      revln up --data-dir /srv/revln --api-port 9000 --workers 2
    """
    settings = Settings.from_env(data_dir=data_dir, api_host=host, api_port=api_port, flower_port=flower_port)
    check_exposure(settings)
    keep_private(settings.data_dir)
    with sole_user(settings.data_dir):
        settings = _with(
            settings,
            data_dir=settings.data_dir.resolve(),
            api_port=claim_port(settings.api_host, settings.api_port, "--api-port"),
            flower_port=claim_port(settings.flower_host, settings.flower_port, "--flower-port"),
        )
        if (settings.api_host, settings.api_port) == (settings.flower_host, settings.flower_port):
            raise StartupError(f"The API and Flower cannot share port {settings.api_port}: give one of them another.")
        redis = None
        if f"{ENV_PREFIX}REDIS_URL" not in os.environ:
            redis = embedded_redis.prepare(settings.data_dir)
            settings = _with(settings, redis_url=redis.url)
        if not settings.api_key.get_secret_value() and _keys_exist(settings):
            # The API will be closed, and our own probes must get in: with a key that lives as long as this run.
            settings = _with(settings, api_key=secrets.token_hex(32))
        if not settings.flower_url:
            settings = _with(settings, flower_url=_url(settings.flower_host, settings.flower_port))
        _run(settings, redis, workers)


def _keys_exist(settings: Settings) -> bool:
    database = Database(settings.resolved_database_url)
    try:
        return keys_exist(database)
    finally:
        database.close()


def _run(settings: Settings, redis: embedded_redis.EmbeddedRedis | None, workers: int) -> None:
    log = LogStream(sys.stderr)
    log.line("up", f"data in {settings.data_dir}")
    try:
        with Supervisor(log, _child_env(settings)) as supervisor:
            if redis is not None:
                supervisor.start(_redis_part(redis))
                supervisor.wait_for("redis", lambda: embedded_redis.ping(redis.url), REDIS_START_S)
            supervisor.run(Part("migrate", _revln("db", "upgrade")), MIGRATE_S)
            for part in _parts(settings, workers):
                supervisor.start(part)
            probes = _Probes(settings)
            supervisor.wait_for("the API", probes.api_lives, START_S)
            # The job before /readyz: what is wrong with a model, only a job can say.
            supervisor.wait_for("a worker", probes.job_runs, START_S)
            supervisor.wait_for("Flower", probes.flower_answers, START_S)
            supervisor.wait_for("every part", probes.all_ready, START_S)
            click.echo(f"flower: {probes.flower_url}")
            click.echo(f"ready: {probes.api_url}")
            supervisor.watch()
        log.line("up", "stopped")
    finally:
        log.close()


def _redis_part(redis: embedded_redis.EmbeddedRedis) -> Part:
    hint = (
        f"If its files in {redis.folder} are damaged, remove that folder: the jobs are in the database, none is lost."
    )
    return Part("redis", redis.command, stop_stage=3, grace_s=REDIS_GRACE_S, hint=hint)


def _parts(settings: Settings, workers: int) -> list[Part]:
    """Stopped in this order: the API takes no more jobs, workers end or hand back theirs, Flower sees them go."""
    names = ["worker"] if workers == 1 else [f"worker-{number}" for number in range(1, workers + 1)]
    return [
        Part("api", _revln("api"), stop_stage=0, grace_s=STOP_MARGIN_S + 5),
        *(
            Part(
                name,
                _revln("worker"),
                stop_stage=1,
                grace_s=settings.shutdown_grace_s + STOP_MARGIN_S,
                check=lambda pid: worker_trouble(settings, pid),
            )
            for name in names
        ),
        Part("flower", _revln("flower"), stop_stage=2, grace_s=STOP_MARGIN_S),
    ]


@dataclass
class _Probes:
    """Whether each part answers; each probe returns "" or why not."""

    settings: Settings

    @property
    def api_url(self) -> str:
        return _url(self.settings.api_host, self.settings.api_port)

    @property
    def flower_url(self) -> str:
        return _url(self.settings.flower_host, self.settings.flower_port)

    def api_lives(self) -> str:
        return _get(f"{self.api_url}/healthz")

    def flower_answers(self) -> str:
        return _get(f"{self.flower_url}/healthcheck")  # the one page that is open under a password

    def all_ready(self) -> str:
        return _get(f"{self.api_url}/readyz", self._key)

    def job_runs(self) -> str:
        """A real job, through every part; deleted afterwards."""
        with RevlnClient(self.api_url, self._key, retry_for_s=PROBE_TIMEOUT_S) as client:
            options: dict[str, Any] = {
                "model": _embedder(client.models()),
                "priority": "interactive",
                "retention_s": 60,
            }
            try:
                job = client.submit("embed", FIRST_JOB, wait_s=FIRST_JOB_WAIT_S, **options)
            except (JobError, UsersError) as error:  # it will be no better the next time
                raise StartupError(f"The API refused a first job: {error.message}") from error
            try:
                if not job["done"]:
                    job = client.wait(job["id"], START_S)
                if job["status"] == "succeeded" and not job["counts"]["failed"]:
                    return ""
                why = job.get("error") or client.result(job["id"])["items"][0]["error"]
            finally:
                with contextlib.suppress(RevlnError):
                    client.delete(job["id"])
        if not why["retryable"]:
            raise StartupError(f"The first job {job['status']}: {why['detail']}")
        return str(why["detail"])

    @property
    def _key(self) -> str | None:
        return self.settings.api_key.get_secret_value() or None


def _embedder(models: list[dict[str, Any]]) -> str:
    """The default model; if that one is sound but embeds no texts, one that does."""
    default = next(model for model in models if model["default"])
    able = [model["name"] for model in models if "embed_text" in model.get("operations", ())]
    name: str = default["name"]
    return name if "error" in default or name in able or not able else able[0]


def _get(url: str, key: str | None = None) -> str:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # No proxy of the environment: it cannot reach this machine.
    answer = httpx.get(url, headers=headers, timeout=PROBE_TIMEOUT_S, trust_env=False)
    return "" if answer.status_code == 200 else f"{url} answers {answer.status_code}: {answer.text[:200]}"


def _revln(*arguments: str) -> tuple[str, ...]:
    # -P: the folder one happens to be in, which may have an `api` of its own, is not searched for modules.
    return (sys.executable, "-P", "-m", "revln.cli.main", *arguments)


def _child_env(settings: Settings) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    paths = [str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
    return env | settings.to_env() | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(paths)}


def _with(settings: Settings, **changes: Any) -> Settings:
    return Settings(**(settings.model_dump() | changes))


def _url(host: str, port: int) -> str:
    """Where a browser on this machine finds it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a comparison
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
