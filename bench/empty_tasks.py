"""Drain tasks that do nothing, with plain Celery: prints tasks a second."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time

from celery import Celery


def main(url: str, count: int) -> None:
    app = Celery("empty", broker=url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True, task_acks_late=True, worker_prefetch_multiplier=1, worker_redirect_stdouts=False
    )
    done = threading.Semaphore(0)

    @app.task(name="empty")
    def empty() -> None:
        done.release()

    for _ in range(count):
        app.send_task("empty")
    logging.disable(logging.WARNING)
    worker = app.Worker(pool="threads", concurrency=8, without_gossip=True, without_mingle=True, quiet=True)

    def measure() -> None:
        done.acquire()
        started = time.perf_counter()
        for _ in range(count - 1):
            done.acquire()
        # Flushed: Celery ends its process without ceremony.
        print((count - 1) / (time.perf_counter() - started), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=measure, daemon=True).start()
    worker.start()  # in the main thread, because it sets signal handlers


main(sys.argv[1], int(sys.argv[2]))
