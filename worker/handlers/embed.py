"""embed: each item to a unit-norm vector."""

from __future__ import annotations

from revln.db.collections import Collection
from revln.errors import ItemError, ModelUnavailable
from revln.jobs.schemas import Item
from worker.context import Context, Done, Outcome, parse_items
from worker.embedding import embed, item_contents
from worker.models import LoadedModel
from worker.text_length import measured

__all__ = ["load_embedder", "run_embed"]


def run_embed(context: Context) -> Done:
    loaded = load_embedder(context)
    parsed = parse_items(context.todo, Item)
    queries = context.input.get("input_type") == "query"
    contents = item_contents(context, [item for _, item in parsed], queries=queries)
    contents, reads = measured(context, loaded, contents)
    vectors = embed(context, loaded, contents)
    return Done(
        [
            Outcome(todo.index, id=_id(item), error=vector)
            if isinstance(vector, ItemError)
            else Outcome(todo.index, id=_id(item), fields=read, vector=vector)
            for (todo, item), vector, read in zip(parsed, vectors, reads, strict=True)
        ]
    )


def load_embedder(context: Context, collection: Collection | None = None) -> LoadedModel:
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
