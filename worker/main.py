"""The worker process: Celery with a pool of threads around one `Runtime`."""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import warnings

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import worker_shutting_down
from redis.exceptions import RedisError

from revln.broker import CANARY_QUEUE, CANARY_TASK, make_celery, task_name
from revln.db.engine import Database
from revln.db.migrate import require_tables
from revln.errors import RevlnError, SettingsError, Unavailable
from revln.installation import Installation
from revln.jobs.kinds import KINDS, all_queues
from revln.models.memory import keep_freed_memory
from revln.redis_clients import RedisNames, connect_redis
from revln.settings import Settings
from revln.telemetry import configure_logging
from worker.execute import execute
from worker.health.consumer import StoppingWorker
from worker.health.echo import ECHO_TASK, echo_queue
from worker.runtime import Runtime

__all__ = ["run"]

log = logging.getLogger(__name__)


def run(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT; the exit status."""
    configure_logging(settings)
    keep_freed_memory()
    # It warns of root because of pickle; only JSON is accepted here.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    queues = choose_queues(settings.queues)
    require_tables(settings)
    require_redis(settings)
    runtime = Runtime(settings, queues)
    app = make_celery(settings)
    app.conf.task_queues.append(echo_queue(runtime.worker_id))
    _register(app, runtime)

    def stopping(code: int = 0) -> None:
        runtime.canary.halt()  # from here on it is meant not to hear
        runtime.leaving.in_time(code)

    worker_shutting_down.connect(lambda **_: stopping(), weak=False)
    worker = StoppingWorker(
        stopping,
        app=app,
        hostname=runtime.worker_id,
        pool="threads",
        concurrency=settings.concurrency,
        queues=[*queues, CANARY_QUEUE, echo_queue(runtime.worker_id).name],
        loglevel=settings.log_level.upper(),
        without_gossip=True,
        without_mingle=True,
        task_events=True,
        quiet=True,
    )
    # Not in Celery's worker_init: it swallows what a receiver raises, and would go on without leases.
    runtime.start()
    worker.start()
    runtime.stop()
    return int(worker.exitcode or 0)


def require_redis(settings: Settings) -> None:
    """Raise SettingsError if Redis is another installation's; of one that is away, the canary finds it out later."""
    database, away = Database(settings.resolved_database_url), contextlib.suppress(RedisError, Unavailable)
    with contextlib.closing(database), connect_redis(settings) as client, away:
        Installation(settings, database).claim(client)


def choose_queues(wanted: str) -> list[str]:
    """The queues that a comma-separated list of names and patterns (``search.*``) means; all of them if it is empty.

    Raises SettingsError for a name that is no queue.
    """
    known = all_queues()
    if not wanted.strip():
        return known
    chosen: list[str] = []
    for pattern in (part.strip() for part in wanted.split(",") if part.strip()):
        matching = fnmatch.filter(known, pattern)
        if not matching:
            raise SettingsError(f"REVLN_QUEUES: {pattern!r} is no queue. There are {', '.join(known)}.")
        chosen += [name for name in matching if name not in chosen]
    return chosen


def _register(app: Celery, runtime: Runtime) -> None:
    """One Celery task for each kind, so that Flower tells them apart; all of them run a chunk."""

    def run_chunk(job_id: str, number: int) -> str:
        """Run the chunk whose turn it is in the queue of the one that the message names.

        That may be another one, of another job and tenant: turns change after a message is published
        (`revln.db.jobs.turns`). What is returned tells it, and is what Flower shows as the task's result.
        """
        with runtime.occupied(by_chunk=True):
            return execute(runtime, job_id, number)

    for kind in KINDS:
        app.task(run_chunk, name=task_name(kind))

    answers, key_of = connect_redis(runtime.settings), RedisNames(runtime.settings).canary_key

    def canary(nonce: str) -> None:
        """Prove that messages arrive, threads run, and the database and the default model answer.

        ``nonce``: "<the asking installation's id>.<random>"; from an API of before, the random part alone.
        """
        try:
            # The model may take its time to load, and all threads may wait for that: busy, not deaf.
            with runtime.occupied(by_chunk=False):
                with runtime.db.read() as connection:
                    connection.exec_driver_sql("SELECT 1")
                if asking := nonce.rpartition(".")[0]:
                    runtime.installation.check(asking)
                runtime.models.prove(runtime.catalog.default)
            answer = "ok"
        except RevlnError as err:
            answer = f"{runtime.worker_id}: {err.message}"
        answers.lpush(key_of(nonce), answer)
        answers.expire(key_of(nonce), 60)

    app.task(canary, name=CANARY_TASK)
    # Its next beat writes it to its row: this must not wait for a database.
    app.task(runtime.canary.heard, name=ECHO_TASK, send_events=False)
