"""index: change a collection, or report on it; one file in `worker.operations` for each operation."""

from __future__ import annotations

from collections.abc import Callable

from revln.db.collections import Collection
from worker.context import Context, Done
from worker.operations import open_serving
from worker.operations.build import run_build
from worker.operations.delete import run_delete
from worker.operations.duplicates import run_duplicates
from worker.operations.migrate import run_migrate
from worker.operations.upsert import run_upsert

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
