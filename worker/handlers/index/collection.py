"""What an index job does to a collection. Rows of the log are written in the transaction that finishes the chunk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from revln.db.collections.collections import Collection, get_collection
from revln.db.collections.generations import generation_for
from revln.db.collections.log import LogEntry, append_log
from revln.errors import FingerprintMismatch, ItemNotFound
from worker.context import Context, Done, Outcome

__all__ = ["Change", "append_changes", "mismatch", "open_collection", "open_serving"]

Change = tuple[Outcome, LogEntry | None]


def open_collection(context: Context[Any]) -> Collection:
    """The generation of the job's collection that is of the job's model: a search goes on after a migration.

    Raises NotFound, or FingerprintMismatch if another model made it. Not for a caption job, whose fingerprint is of the
    whole model.
    """
    job = context.job
    assert job.collection is not None
    with context.runtime.db.read() as connection:
        collection = generation_for(connection, job.tenant, job.collection, job.model_fingerprint)
    if collection.model_fingerprint != job.model_fingerprint:
        raise mismatch(context, collection)
    return collection


def open_serving(context: Context[Any]) -> Collection:
    """The collection as it serves, to be changed or looked at. Raises NotFound."""
    job = context.job
    assert job.collection is not None
    with context.runtime.db.read() as connection:
        return get_collection(connection, job.tenant, job.collection)


def mismatch(context: Context[Any], collection: Collection) -> FingerprintMismatch:
    return FingerprintMismatch(
        f"Collection {collection.name!r} holds {collection.holds}; the job's are of {context.job.model} "
        f"({context.job.model_fingerprint}). Vectors of two models never meet. To have the whole collection "
        f"embedded by another model: revln index migrate {collection.name} --model NAME"
    )


def append_changes(collection: Collection, changes: list[Change]) -> Done:
    """Hand in changes to the log, to be appended once the fence has held; an item's error has none."""

    def apply(connection: Connection, _: list[Outcome]) -> list[Outcome]:
        seqs = iter(append_log(connection, collection.id, [entry for _, entry in changes if entry is not None]))
        return [
            outcome if entry is None else _appended(collection, outcome, entry, next(seqs))
            for outcome, entry in changes
        ]

    return Done([outcome for outcome, _ in changes], apply)


def _appended(collection: Collection, outcome: Outcome, entry: LogEntry, seq: int | None) -> Outcome:
    if seq is not None:
        return replace(outcome, fields={"seq": seq, **(outcome.fields or {})})
    error = ItemNotFound(f"Collection {collection.name!r} has no item {entry.item_id!r}.")
    return replace(outcome, error=error)
