"""What a real worker tells of its tasks, which is what Flower shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from revln.broker import make_celery, task_id, task_name
from revln.db.engine import Database
from revln.db.jobs.read import Job
from revln.settings import Settings
from tests.builders import make_job
from tests.stack import Stack, running, wait_until


@contextmanager
def events(settings: Settings) -> Iterator[list[dict[str, Any]]]:
    """Whatever workers tell, as it comes; it is heard from the first sign of life on."""
    heard: list[dict[str, Any]] = []
    with make_celery(settings).connection_for_read() as connection:
        receiver = make_celery(settings).events.Receiver(connection, handlers={"*": heard.append})
        thread = Thread(target=lambda: list(receiver.itercapture(limit=None, timeout=None)), daemon=True)
        thread.start()
        wait_until(lambda: heard, what="a worker's sign of life")
        yield heard
        receiver.should_stop = True
        thread.join(20)


class WorkerAlone(Stack):
    """Nobody publishes but the test: no API, and a sweeper that does not come."""

    def start_api(self) -> None:
        """There is none."""

    def wait_ready(self) -> None:
        """Its first event is waited for."""


def test_a_tasks_result_names_the_chunk_that_ran_which_need_not_be_the_one_that_its_message_names(
    tmp_path: Path,
) -> None:
    stack = WorkerAlone(tmp_path, sweep_s=3_600.0)
    with running(stack), closing(Database(stack.settings.resolved_database_url)) as db, events(stack.settings) as heard:
        # They fail, for want of a collection, as soon as they run; and are on record as having run.
        jobs = [make_job(db, n_items=1, kind="search", queue="search.normal", collection="none") for _ in range(2)]
        first, second = jobs

        def ring(named: Job) -> str:
            """What came of a message that names a job's chunk."""
            heard.clear()
            with closing(make_celery(stack.settings, publisher=True)) as app:
                named_by = task_id(named.id, 0)
                app.send_task(task_name("search"), args=[named.id, 0], task_id=named_by, queue="search.normal")
            (told,) = wait_until(
                lambda: [one for one in heard if one["type"] == "task-succeeded" and one["uuid"] == named_by],
                what="the end of the task",
            )
            return str(told["result"])

        assert ring(second) == repr(f"ran {task_id(first.id, 0)}")
        assert ring(second) == repr(f"ran {task_id(second.id, 0)}")
        assert ring(second) == repr("nothing: its queue is empty")
