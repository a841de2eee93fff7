"""delete: items by their ids, or all that pass a filter."""

from __future__ import annotations

from typing import Any

from revln.db.collections.collections import Collection
from revln.db.collections.items import delete_matching
from revln.db.collections.log import LogEntry
from revln.db.jobs.chunks import hold_chunk
from revln.jobs.filters import Filter, parse_filter
from revln.jobs.index_schemas import DeleteParameters
from worker.context import Context, Done, Outcome
from worker.handlers.index.collection import append_changes, open_serving

__all__ = ["run_delete"]

_TOGETHER = 5_000  # rows of one transaction; others write in between


def run_delete(context: Context[DeleteParameters]) -> Done:
    collection = open_serving(context)
    if context.parameters.filter is not None:
        return _by_filter(context, collection, parse_filter(context.parameters.filter))
    return append_changes(
        collection, [(Outcome(todo.index, id=todo.raw), LogEntry("delete", todo.raw)) for todo in context.todo]
    )


def _by_filter(context: Context[Any], collection: Collection, wanted: Filter) -> Done:
    """What passes and was there when the chunk began. Run again after a crash, it goes on with what is left."""
    deleted = after = seq = 0
    while after < collection.head_seq:
        context.lease.check()
        with context.runtime.db.write() as connection:
            # In the same transaction: a worker that was taken for dead must not delete what has come since.
            hold_chunk(connection, context.claim)
            step = delete_matching(connection, collection.id, wanted, after, collection.head_seq, _TOGETHER)
        deleted, after, seq = deleted + step.deleted, step.last_seq, step.seq or seq
        context.lease.progress()
    return Done([Outcome(todo.index, fields={"deleted": deleted, "seq": seq}) for todo in context.todo])
