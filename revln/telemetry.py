"""Logging: one line an event, ids only; never a payload, a URL's query or a key.

What an exception says may hold any of these: a validator's message has what was sent, a database's the row. So a
traceback in the log has types and places, and the words of those errors alone which say what the service itself lacks.
"""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType

from revln.errors import ModelUnavailable, SettingsError, StartupError, Unavailable
from revln.settings import Settings

__all__ = ["Formatter", "configure_logging"]

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_OURS = (Unavailable, ModelUnavailable, SettingsError, StartupError, OSError, ImportError)

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Formatter(logging.Formatter):
    """Leaves out what an exception says, unless it is of the service itself."""

    def formatException(self, ei: _ExcInfo) -> str:
        lines: list[str] = []
        seen: set[int] = set()
        err = ei[1]
        while err is not None and id(err) not in seen:
            seen.add(id(err))
            said = f": {err}" if isinstance(err, _OURS) else ""
            lines.append("".join(traceback.format_tb(err.__traceback__)) + f"{type(err).__qualname__}{said}")
            err = err.__cause__ or (None if err.__suppress_context__ else err.__context__)
        return "\nwhich comes from\n".join(lines)


def _without_query(record: logging.LogRecord) -> bool:
    """A line of the server's access log, which is there at debug: a query may hold a filter, or a key gone astray."""
    if isinstance(record.args, tuple):
        record.args = tuple(one.partition("?")[0] if isinstance(one, str) else one for one in record.args)
    return True


def configure_logging(settings: Settings) -> None:
    """Send everything to standard error, once for a process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(_FORMAT, datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # The first speak of every request they make, URLs included; Celery's two say what our own lines say better.
    for noisy in ("httpx", "httpcore", "fsspec", "PIL", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    access = logging.getLogger("uvicorn.access")
    access.filters[:] = [_without_query]
