"""Logging: one line an event, ids only; never a payload, a URL's query or a key."""

from __future__ import annotations

import logging
import sys

from revln.settings import Settings

__all__ = ["configure_logging"]

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def _without_query(record: logging.LogRecord) -> bool:
    """A line of the server's access log, which is there at debug: a query may hold a filter, or a key gone astray."""
    if isinstance(record.args, tuple):
        record.args = tuple(one.partition("?")[0] if isinstance(one, str) else one for one in record.args)
    return True


def configure_logging(settings: Settings) -> None:
    """Send everything to standard error, once for a process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # The first speak of every request they make, URLs included; Celery's two say what our own lines say better.
    for noisy in ("httpx", "httpcore", "fsspec", "PIL", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    access = logging.getLogger("uvicorn.access")
    access.filters[:] = [_without_query]
