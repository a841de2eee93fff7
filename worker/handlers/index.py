"""index: change a collection. The rows of its log are written in the transaction that finishes the chunk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from revln.db.collections import Collection, get_collection
from revln.db.log import LogEntry, append_log
from revln.db.results import vectors_to_bytes
from revln.errors import FingerprintMismatch, ItemError, ItemNotFound
from revln.jobs.schemas import Item
from worker.context import Context, Done, Outcome, parse_items
from worker.embedding import Content, embed, item_contents
from worker.handlers.embed import load_embedder

__all__ = ["open_collection", "run_index"]


def run_index(context: Context) -> Done:
    collection = open_collection(context)
    changes = _deletes(context) if context.input["operation"] == "delete" else _upserts(context)

    def apply(connection: Connection, _: list[Outcome]) -> list[Outcome]:
        return _append(connection, collection, changes)

    return Done([outcome for outcome, _ in changes], apply)


def open_collection(context: Context) -> Collection:
    """The job's collection. Raises NotFound, or FingerprintMismatch if another model made it.

    Not for a caption job, whose fingerprint is of the whole model.
    """
    assert context.job.collection is not None
    with context.runtime.db.read() as connection:
        collection = get_collection(connection, context.job.collection)
    if collection.model_fingerprint != context.job.model_fingerprint:
        raise FingerprintMismatch(
            f"Collection {collection.name!r} holds vectors of {collection.model} ({collection.model_fingerprint}); the "
            f"job's are of {context.job.model} ({context.job.model_fingerprint}). Vectors of two models never meet."
        )
    return collection


_Change = tuple[Outcome, LogEntry | None]


def _deletes(context: Context) -> list[_Change]:
    return [(Outcome(todo.index, id=todo.raw), LogEntry("delete", todo.raw)) for todo in context.todo]


def _upserts(context: Context) -> list[_Change]:
    loaded = load_embedder(context)
    parsed = parse_items(context.todo)
    contents = item_contents(context, [item for _, item in parsed])
    vectors = embed(context, loaded, contents)
    changes: list[_Change] = []
    for (todo, item), content, vector in zip(parsed, contents, vectors, strict=True):
        if isinstance(vector, ItemError) or isinstance(content, ItemError) or isinstance(item, ItemError):
            error = next(part for part in (item, content, vector) if isinstance(part, ItemError))
            changes.append((Outcome(todo.index, id=getattr(item, "id", None), error=error), None))
            continue
        # Without an id of the user's, the content is the id: indexing the same picture twice keeps one of it.
        item_id = item.id or content.key.partition(":")[2]
        changes.append((Outcome(todo.index, id=item_id), _entry(item_id, item, content, vectors_to_bytes(vector))))
    return changes


def _entry(item_id: str, item: Item, content: Content, vector: bytes) -> LogEntry:
    metadata: dict[str, Any] = dict(item.metadata)
    return LogEntry(
        "upsert",
        item_id,
        vector=vector,
        content_key=content.key,
        text=item.text,
        metadata=metadata,
        image_sha256=content.image_sha256,
    )


def _append(connection: Connection, collection: Collection, changes: list[_Change]) -> list[Outcome]:
    entries = [entry for _, entry in changes if entry is not None]
    seqs = iter(append_log(connection, collection.id, entries))
    outcomes = []
    for outcome, entry in changes:
        if entry is None:
            outcomes.append(outcome)
            continue
        seq = next(seqs)
        if seq is None:
            error = ItemNotFound(f"Collection {collection.name!r} has no item {entry.item_id!r}.")
            outcomes.append(replace(outcome, error=error))
        else:
            outcomes.append(replace(outcome, fields={"seq": seq}))
    return outcomes
