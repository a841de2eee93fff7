"""Name the handler of each kind of job and of each operation, here alone (a test holds the table to `KINDS`)."""

from __future__ import annotations

from worker.context import Handler
from worker.handlers.caption import run_caption
from worker.handlers.embed import run_embed
from worker.handlers.index.build import run_build
from worker.handlers.index.delete import run_delete
from worker.handlers.index.duplicates import run_duplicates
from worker.handlers.index.migrate import run_migrate
from worker.handlers.index.upsert import run_upsert
from worker.handlers.search import run_search

__all__ = ["HANDLERS"]

HANDLERS: dict[str, Handler] = {
    "embed": run_embed,
    "upsert": run_upsert,
    "delete": run_delete,
    "build": run_build,
    "duplicates": run_duplicates,
    "migrate": run_migrate,
    "search": run_search,
    "caption": run_caption,
}
