"""embed: each item to a unit-norm vector."""

from __future__ import annotations

from typing import Any

from revln.db.collections.collections import Collection
from revln.errors import ItemError, ModelUnavailable
from revln.jobs.schemas import Item, ItemsParameters
from worker.context import Context, Done, Outcome, parse_items
from worker.embedding import embed, item_contents
from worker.models.pool import LoadedModel

__all__ = ["load_embedder", "run_embed"]


def run_embed(context: Context[ItemsParameters]) -> Done:
    loaded = load_embedder(context)
    parsed = parse_items(context.todo, Item)
    vectors = embed(context, loaded, item_contents(context, [item for _, item in parsed]))
    return Done(
        [
            Outcome(todo.index, id=_id(item), error=vector)
            if isinstance(vector, ItemError)
            else Outcome(todo.index, id=_id(item), vector=vector)
            for (todo, item), vector in zip(parsed, vectors, strict=True)
        ]
    )


def load_embedder(context: Context[Any], collection: Collection | None = None) -> LoadedModel:
    """The job's model, if it embeds anything at all; the collection's, if that was migrated since the job came in.

    Raises ModelUnavailable.
    """
    name, fingerprint = context.job.model, context.job.model_fingerprint
    if collection is not None and collection.model_fingerprint != fingerprint:
        name, fingerprint = collection.model, collection.model_fingerprint
    assert name is not None
    loaded = context.runtime.models.get(name, fingerprint)
    if loaded.model.info.dim is None:
        raise ModelUnavailable(f"Model {name} makes no vectors.")
    return loaded


def _id(item: Item | ItemError) -> str | None:
    return item.id if isinstance(item, Item) else None
