"""embed: each item to a unit-norm vector."""

from __future__ import annotations

from revln.errors import ItemError
from revln.jobs.schemas import Item, ItemsParameters
from worker.context import Context, Done, Outcome, parse_items
from worker.embedding import embed, item_contents, load_embedder

__all__ = ["run_embed"]


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


def _id(item: Item | ItemError) -> str | None:
    return item.id if isinstance(item, Item) else None
