"""upsert: items with their vectors, computed by the collection's model or brought along."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from revln.db.collections.collections import Collection
from revln.db.collections.generations import generation_for
from revln.db.collections.log import LogEntry
from revln.db.jobs.results import vectors_to_bytes
from revln.errors import ItemError, ItemInvalid
from revln.jobs.index_schemas import IndexItem, UpsertParameters
from worker.context import Context, Done, Outcome, parse_items
from worker.embedding import embed, item_contents, load_embedder
from worker.handlers.index.brought_vectors import own_vector, own_vector_key
from worker.handlers.index.collection import Change, append_changes, mismatch, open_serving
from worker.handlers.index.migrate import prepare_next
from worker.text_length import Read, measured

__all__ = ["run_upsert"]

_Vector = NDArray[np.float32]
_Made = tuple[_Vector, str, Read] | ItemError  # the vector, the key of what it is made of, and how that was read


def run_upsert(context: Context[UpsertParameters]) -> Done:
    collection = open_serving(context)
    _check_generation(context, collection)
    parsed = parse_items(context.todo, IndexItem)
    made = _vectors(context, collection, [item for _, item in parsed])
    changes: list[Change] = []
    for (todo, item), vector in zip(parsed, made, strict=True):
        if isinstance(item, ItemError) or isinstance(vector, ItemError):
            error = item if isinstance(item, ItemError) else vector
            assert isinstance(error, ItemError)
            changes.append((Outcome(todo.index, id=getattr(item, "id", None), error=error), None))
        else:
            made_of, key, read = vector
            entry = _entry(item, made_of, key)
            changes.append((Outcome(todo.index, id=entry.item_id, fields=read), entry))
    return append_changes(collection, changes)


def _check_generation(context: Context[UpsertParameters], serving: Collection) -> None:
    """After a migration, items that were accepted for the former model are embedded by the new one.

    Raises FingerprintMismatch for vectors of the former one that are brought along, and for what is of neither.
    """
    with context.runtime.db.read() as connection:
        wanted = generation_for(connection, context.job.tenant, serving.name, context.job.model_fingerprint)
    known = wanted.model_fingerprint == context.job.model_fingerprint  # it serves, or it did
    if not known or (wanted.id != serving.id and context.parameters.brings_vectors):
        raise mismatch(context, serving)


def _vectors(
    context: Context[UpsertParameters], collection: Collection, items: list[IndexItem | ItemInvalid]
) -> list[_Made]:
    """Each item's vector; the errors of items that could not be read stay where they are."""
    to_embed = [at for at, item in enumerate(items) if not isinstance(item, ItemError) and not item.has_vector]
    found: dict[int, _Made] = {}
    if to_embed and collection.has_model:
        loaded = load_embedder(context, collection)
        contents = item_contents(context, [items[at] for at in to_embed])
        contents, reads = measured(loaded, contents, context.parameters.truncate)
        vectors = embed(context, loaded, contents)
        prepare_next(context, collection, contents)
        for at, content, vector, read in zip(to_embed, contents, vectors, reads, strict=True):
            if isinstance(content, ItemError):
                found[at] = content
            else:
                found[at] = vector if isinstance(vector, ItemError) else (vector, content.key, read)
    return [found[at] if at in found else _given(context, collection, item) for at, item in enumerate(items)]


def _given(context: Context[UpsertParameters], collection: Collection, item: IndexItem | ItemInvalid) -> _Made:
    if isinstance(item, ItemError):
        return item
    if not item.has_vector:
        return ItemInvalid(
            f"Collection {collection.name!r} holds {collection.holds} and has no model: give this item a vector."
        )
    if item.image is not None and item.image.sha256 is None:
        return ItemInvalid("The picture of an item with a vector is only kept: upload it, and give its sha256.")
    try:
        vector = own_vector(item, collection, context.parameters.vectors_of)
    except ItemInvalid as err:
        return err
    return vector, own_vector_key(vector), {}


def _entry(item: IndexItem, vector: _Vector, key: str) -> LogEntry:
    kind, _, digest = key.partition(":")
    image = item.image.sha256 if item.image is not None else None
    return LogEntry(
        "upsert",
        # Without an id of the user's, the content is the id: indexing the same picture twice keeps one of it.
        item.id or digest,
        vector=vectors_to_bytes(vector),
        content_key=key,
        text=item.text,
        metadata=dict(item.metadata),
        image_sha256=digest if kind == "image" else image,  # a picture given by its URL is known by its bytes
    )
