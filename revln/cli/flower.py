"""Flower, in this process, for whom it is meant."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from revln.access import is_loopback
from revln.addresses import set_by_kubernetes
from revln.settings import Settings

__all__ = ["flower_arguments", "refuse_strange_hosts", "run_flower"]

OFFLINE_WORKERS_S = 600  # a restarted worker has a new name; its old one leaves Flower's list after this
FLOWER_SAVE_MS = 30_000
# Flower's own is 100,000: 452 MB after 120,000 chunks (measured), all of it written to disk every 30 s.
MOST_CHUNKS = 10_000


def run_flower(settings: Settings) -> int:
    """Run it until it is stopped; the exit status."""
    # A service named "flower" makes Kubernetes set FLOWER_PORT=tcp://…, which Flower takes for an option of its own.
    for name in [name for name in os.environ if name.startswith("FLOWER_")]:
        if set_by_kubernetes(name, os.environ[name]):
            del os.environ[name]
    from revln.broker import make_celery

    if not settings.flower_basic_auth.get_secret_value():
        refuse_strange_hosts(settings)
    code: Any = make_celery(settings).start(flower_arguments(settings))
    return int(code or 0)


def flower_arguments(settings: Settings) -> list[str]:
    """Return Flower's command line, for `Celery.start`: in this process, so the password is in no process list."""
    arguments = [
        "flower",
        f"--address={settings.flower_host}",
        f"--port={settings.flower_port}",
        # At info it lists every task it knows at each start.
        f"--logging={'warning' if settings.log_level == 'info' else settings.log_level}",
        "--read_only=True",
        "--persistent=True",
        f"--db={settings.data_dir.resolve() / 'flower'}",
        f"--state_save_interval={FLOWER_SAVE_MS}",
        f"--purge_offline_workers={OFFLINE_WORKERS_S}",
        f"--max_tasks={MOST_CHUNKS}",
    ]
    if login := settings.flower_basic_auth.get_secret_value():
        arguments.append(f"--basic_auth={login}")
    return arguments


def refuse_strange_hosts(settings: Settings) -> None:
    """Have an open Flower answer only to names of this machine.

    A web page can make its own name resolve to 127.0.0.1, and would then read Flower as if it were its own.
    """
    from flower import command
    from tornado.web import ErrorHandler

    known = {settings.flower_host, urlsplit(settings.flower_url).hostname}

    class Guarded(command.Flower):  # type: ignore[misc]
        def find_handler(self, request: Any, **more: Any) -> Any:
            name = _name_of(request.host)
            if name and (is_loopback(name) or name in known):
                return super().find_handler(request, **more)
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 403})

    command.Flower = Guarded


def _name_of(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
