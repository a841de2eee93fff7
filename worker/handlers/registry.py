"""Name the handler of each kind of job, here alone (a test holds the table to `KINDS`)."""

from __future__ import annotations

from worker.context import Handler
from worker.handlers.caption import run_caption
from worker.handlers.embed import run_embed
from worker.handlers.index.operations import run_index
from worker.handlers.search import run_search

__all__ = ["HANDLERS"]

HANDLERS: dict[str, Handler] = {
    "embed": run_embed,
    "index": run_index,
    "search": run_search,
    "caption": run_caption,
}
