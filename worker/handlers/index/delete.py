"""delete: items by their ids, or all that pass a filter."""

from __future__ import annotations

from typing import Any

from revln.db.collections.collections import Collection
from revln.db.collections.items import begin_delete, delete_matching
from revln.db.collections.log import LogEntry
from revln.db.collections.matching import matching_seqs
from revln.db.collections.order import position_of
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
    accepted = context.job.accepted
    return append_changes(
        collection,
        [
            (Outcome(todo.index, id=todo.raw), LogEntry("delete", todo.raw, position=position_of(accepted, todo.index)))
            for todo in context.todo
        ],
    )


def _by_filter(context: Context[Any], collection: Collection, wanted: Filter) -> Done:
    """What passes and was there when the chunk began. Run again after a crash, it goes on with what is left."""
    db, accepted, deleted, seq = context.runtime.db, context.job.accepted, 0, 0
    with db.write() as connection:
        hold_chunk(connection, context.claim)
        head_seq = begin_delete(connection, collection.id, accepted, context.parameters.filter)
    for found, _ in matching_seqs(db, collection.id, wanted, 0, head_seq, context.lease.keep_waiting):
        for start in range(0, len(found), _TOGETHER):
            context.lease.keep_waiting()
            with db.write() as connection:
                # In the same transaction: a worker that was taken for dead must not delete what has come since.
                hold_chunk(connection, context.claim)
                step = delete_matching(connection, collection.id, found[start : start + _TOGETHER].tolist(), accepted)
            deleted, seq = deleted + step.deleted, step.seq or seq
    return Done([Outcome(todo.index, fields={"deleted": deleted, "seq": seq}) for todo in context.todo])
