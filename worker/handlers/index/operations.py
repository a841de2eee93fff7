"""index: change a collection, or report on it."""

from __future__ import annotations

from collections.abc import Callable

from revln.db.collections.collections import Collection
from worker.context import Context, Done
from worker.handlers.index.build import run_build
from worker.handlers.index.collection import open_serving
from worker.handlers.index.delete import run_delete
from worker.handlers.index.duplicates import run_duplicates
from worker.handlers.index.migrate import run_migrate
from worker.handlers.index.upsert import run_upsert

__all__ = ["OPERATIONS", "run_index"]

OPERATIONS: dict[str, Callable[[Context, Collection], Done]] = {
    "upsert": run_upsert,
    "delete": run_delete,
    "build": run_build,
    "duplicates": run_duplicates,
    "migrate": run_migrate,
}


def run_index(context: Context) -> Done:
    return OPERATIONS[context.input["operation"]](context, open_serving(context))
